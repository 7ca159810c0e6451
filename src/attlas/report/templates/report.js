const specs = JSON.parse(document.getElementById("specs").textContent);
const options = {
  mode: "vega-lite",
  renderer: "svg",
  actions: { export: true, source: false, compiled: false, editor: false },
};
window.attlasCharts = Promise.all(
  Object.entries(specs).map(([name, spec]) =>
    vegaEmbed(document.getElementById(name), spec, { ...options, downloadFileName: name })
  )
);
window.attlasCharts
  .then(() => { document.documentElement.dataset.charts = "drawn"; })
  .catch((error) => console.error(error));
