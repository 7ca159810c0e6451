"""The page in a real browser: nothing is fetched, nothing complains, every chart is drawn, hovering tells."""

from __future__ import annotations

import pytest

from attlas.report.figures import FIGURES
from skips import chromium, needs

pytestmark = [needs("chromium"), pytest.mark.browser]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def opened(report):
    """The page in Chromium, with every request and complaint since it was opened."""
    from playwright.sync_api import sync_playwright

    requests: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(report.page.as_uri())
        page.wait_for_function("document.documentElement.dataset.charts === 'drawn'")
        yield page, requests, complaints
        browser.close()


def test_nothing_is_fetched_and_nothing_complains(opened, report):
    page, requests, complaints = opened
    assert requests == [report.page.as_uri()]
    assert complaints == []
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0


def test_every_chart_is_drawn(opened):
    page, _, _ = opened
    for figure in FIGURES:
        marks = page.locator(f"#{figure.name} svg .mark-rect path, #{figure.name} svg .mark-symbol path")
        assert marks.count() >= 8, figure.name
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_hovering_a_cell_tells_the_rule(opened, results):
    page, _, _ = opened
    cells = page.locator("#spans svg .mark-rect.role-mark path")
    assert cells.count() == 18
    cell = cells.nth(7)
    label = cell.get_attribute("aria-label")
    cell.hover()
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    told = dict(
        zip(
            page.locator("#vg-tooltip-element td.key").all_inner_texts(),
            page.locator("#vg-tooltip-element td.value").all_inner_texts(),
            strict=True,
        )
    )
    layer, head = int(told["layer"]), int(told["KV head"])
    assert told["rule"] == results["plan"]["rules"][layer][head], label
    assert told["span in tokens"].replace(",", "").isdigit() and told["share kept"].endswith("%")


def test_another_length_can_be_chosen(opened):
    page, _, _ = opened
    before = page.locator("#spans svg .mark-rect.role-mark path").nth(0).get_attribute("fill")
    cells = "[...document.querySelectorAll('#spans svg .mark-rect.role-mark path')]"
    fills = f"() => {cells}.map(cell => cell.getAttribute('fill'))"
    longest = page.evaluate(fills)
    page.locator("#spans input[type=radio]").first.check()
    page.wait_for_function(f"longest => JSON.stringify(({fills})()) !== JSON.stringify(longest)", arg=longest)
    assert len(page.evaluate(fills)) == len(longest) and before in longest
