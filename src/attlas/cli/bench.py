"""Commands that measure several systems side by side: attlas bench patterns, mixers and extrapolation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from attlas._common.errors import UsageError
from attlas._common.files import to_json
from attlas.cli.app import ATLAS, app, command, import_from_here
from attlas.cli.bars import Bars

__all__ = ["bench", "extrapolation", "mixers", "patterns"]

bench = typer.Typer(
    help="Compare systems side by side, at equal cost.", no_args_is_help=True, rich_markup_mode="rich"
)
app.add_typer(bench, name="bench", rich_help_panel=ATLAS)

_Number = TypeVar("_Number", int, float)
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


@command(ATLAS, bench)
def mixers(
    mixer: Annotated[
        list[str] | None,
        typer.Option(
            help="A registered mixer or your class, package.module:Class; by default softmax, window "
            "and based_linear.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="mqar, mqar_long, passkey, copy, induction, text, series, digits or digits_causal; "
            "by default mqar and text.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Networks that are told, for every mixer and task.")] = 3,
    rates: Annotated[str, typer.Option(help="Learning rates to choose from, with commas.")] = "0.001,0.003",
    steps: Annotated[
        int | None,
        typer.Option(
            help="Training steps of softmax in place of the tasks' own; others by their FLOPs.",
            show_default=False,
        ),
    ] = None,
    widths: Annotated[str, typer.Option(help="Widths of the networks, with commas.")] = "64",
    heads: Annotated[int, typer.Option(help="Heads of every mixer.")] = 2,
    lengths: Annotated[
        str, typer.Option(help="Lengths for time and memory, 4 or more, with commas; '' for none.")
    ] = "256,512,1024,2048,4096",
    out: Annotated[Path, typer.Option(help="Folder for mixers.json and pictures.")] = Path("runs/mixers"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what an interrupted run has.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare token mixers in one small network at equal parameters and FLOPs: recall, loss, state, time.

    Your own class joins by name, as in --mixer softmax --mixer mypackage.mine:MyMixer: made as
    MyMixer(width, heads), it maps (batch, tokens, width) to the same shape and may not look ahead. An
    interrupted comparison continues when the same command is given again, also with more mixers or seeds.

    The frontier of recall and state, about an hour on 2 cores:

      attlas bench mixers --task mqar --widths 16,32,64 --mixer softmax --mixer window --mixer based_linear
      --mixer lightning --mixer mamba --mixer titans_mag --mixer base_conv_long --mixer sparse_hybrid
    """
    from attlas.catalog.bench.mixer_settings import MixerSettings
    from attlas.catalog.bench.mixers import bench_mixers

    usual = MixerSettings()
    settings = MixerSettings(
        mixers=tuple(mixer or usual.mixers),
        tasks=tuple(task or usual.tasks),
        seeds=seeds,
        rates=_numbers("rates", rates, float),
        steps=steps,
        widths=_numbers("widths", widths, int),
        heads=heads,
        lengths=_numbers("lengths", lengths, int),
    )
    import_from_here()
    with Bars() as progress:
        result = bench_mixers(settings, out=out, command=settings.command(), fresh=fresh, progress=progress)
        from attlas.report import print_mixers, write_mixers

        page = write_mixers(out, progress=progress).page
    if as_json:
        print(to_json(result), end="")
        return
    print_mixers(result)
    print(f"result   {out / 'mixers.json'}\npictures {page}")


@command(ATLAS, bench)
def extrapolation(
    mixer: Annotated[
        list[str] | None,
        typer.Option(
            help="softmax, flashsigmoid, sigmoid_bare, lssa, lssar3, lssar15, gated (the default), "
            "softmax_reweighted, a registered mixer or your class, package.module:Class.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Language models that are trained for every mixer.")] = 3,
    steps: Annotated[int, typer.Option(help="Training steps of 16 windows each.")] = 300,
    lengths: Annotated[
        str, typer.Option(help="The length of training, then those of the test, with commas.")
    ] = "128,256,512,1024,2048",
    windows: Annotated[int, typer.Option(help="Held-out windows that are judged.")] = 16,
    out: Annotated[Path, typer.Option(help="Folder for extrapolation.json and pictures.")] = Path(
        "runs/extrapolation"
    ),
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what an interrupted run has.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train small language models short, test them long: loss on the same bytes, and attention sinks.

    Only the text before the judged bytes grows; nothing is trained again. An interrupted comparison
    continues when the same command is given again, also with more mixers or seeds.
    """
    from attlas.catalog.bench.extrapolation import bench_extrapolation
    from attlas.catalog.bench.extrapolation_settings import ExtrapolationSettings

    settings = ExtrapolationSettings(
        mixers=tuple(mixer or ExtrapolationSettings().mixers),
        seeds=seeds,
        steps=steps,
        lengths=_numbers("lengths", lengths, int),
        windows=windows,
    )
    import_from_here()
    with Bars() as progress:
        result = bench_extrapolation(
            settings, out=out, command=settings.command(), fresh=fresh, progress=progress
        )
        from attlas.report import print_extrapolation, write_extrapolation

        page = write_extrapolation(out, progress=progress).page
    if as_json:
        print(to_json(result), end="")
        return
    print_extrapolation(result)
    print(f"result   {out / 'extrapolation.json'}\npictures {page}")


def _numbers(name: str, text: str, kind: type[_Number]) -> tuple[_Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"{name} must be {what} with commas between them, got {text!r}") from None


def _grid(text: str) -> tuple[int, int, int] | None:
    if not text:
        return None
    found = GRID.fullmatch(text)
    if found is None:
        raise UsageError(f"grid is FRAMESxHEIGHTxWIDTH, as in 48x8x16, or '' for none; got {text!r}")
    frames, height, width = (int(part) for part in found.groups())
    return frames, height, width
