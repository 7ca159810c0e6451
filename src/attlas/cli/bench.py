"""Commands that measure several systems side by side: attlas bench patterns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from attlas._common.errors import UsageError
from attlas._common.files import to_json
from attlas.cli.app import ATLAS, app, command
from attlas.cli.bars import Bars

__all__ = ["bench", "patterns"]

bench = typer.Typer(
    help="Compare systems side by side, at equal cost.", no_args_is_help=True, rich_markup_mode="rich"
)
app.add_typer(bench, name="bench", rich_help_panel=ATLAS)

GRID = re.compile(r"(\d+)x(\d+)x(\d+)")


@command(ATLAS, bench)
def patterns(
    length: Annotated[int, typer.Option(help="Tokens of the sequence.")] = 4096,
    density: Annotated[
        float | None,
        typer.Option(
            help="Share of the pairs that every pattern may compute; by default that of --plan, else 0.25, "
            "and on the grid that of Radial.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[int, typer.Option(help="Layers after which the reach is told.")] = 4,
    grid: Annotated[str, typer.Option(help="FRAMESxHEIGHTxWIDTH of the grid; '' for none.")] = "48x8x16",
    model: Annotated[
        str | None,
        typer.Option(help="Try them on a pretrained MODEL, untrained for them, too.", show_default=False),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="A plan.json for that model, to be compared at its own cost.", show_default=False),
    ] = None,
    needles: Annotated[int, typer.Option(help="Hidden facts that MODEL is asked for.")] = 40,
    seeds: Annotated[int, typer.Option(help="Small models to train with every pattern; 0 for none.")] = 0,
    timing: Annotated[bool, typer.Option(help="Measure the time of a call beside dense attention.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for static_patterns.json and pictures.")] = Path(
        "runs/patterns"
    ),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again what an interrupted run has.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare static patterns at equal density: reach, holes, blocks, time, a picture of each.

    With --model also what each of them does to a pretrained model's text loss and to facts hidden in its
    context, beside a plan. An interrupted comparison continues when the same command is given again.
    """
    from attlas.catalog.bench.patterns import Pretrained, bench_patterns
    from attlas.catalog.bench.settings import Settings
    from attlas.pattern import Plan

    settings = Settings(
        length=length,
        density=density,
        layers=layers,
        grid=_grid(grid),
        timing=timing,
        seeds=seeds,
        needles=needles,
    )
    if plan is not None and model is None:
        raise UsageError("a plan needs the model that it was made for: give --model too")
    rules = None if plan is None else Plan.load(plan)
    pretrained = None
    if model is not None:
        from attlas.bridges import load_model

        pretrained = Pretrained(*load_model(model), plan=rules)
    with Bars() as progress:
        result = bench_patterns(
            settings,
            out=out,
            pretrained=pretrained,
            command=settings.command(model, plan),
            fresh=fresh,
            progress=progress,
        )
        from attlas.report import print_patterns, write_patterns

        page = write_patterns(out, progress=progress).page
    if as_json:
        print(to_json(result), end="")
        return
    print_patterns(result)
    print(f"result   {out / 'static_patterns.json'}\npictures {page}")


def _grid(text: str) -> tuple[int, int, int] | None:
    if not text:
        return None
    found = GRID.fullmatch(text)
    if found is None:
        raise UsageError(f"grid is FRAMESxHEIGHTxWIDTH, as in 48x8x16, or '' for none; got {text!r}")
    frames, height, width = (int(part) for part in found.groups())
    return frames, height, width
