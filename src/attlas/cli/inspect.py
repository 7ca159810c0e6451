"""Commands that look into a mixer: attlas inspect dsf."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from attlas._common.files import check_folder, to_json
from attlas.cli.app import ATLAS, app, command, import_from_here

__all__ = ["dsf", "inspect"]

inspect = typer.Typer(help="Look into a mixer.", no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(inspect, name="inspect", rich_help_panel=ATLAS)


@command(ATLAS, inspect)
def dsf(
    mixer: Annotated[
        list[str] | None,
        typer.Option(
            help="A registered mixer or your class, package.module:Class; by default all of them.",
            show_default=False,
        ),
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens of the sequence.")] = 64,
    out: Annotated[Path, typer.Option(help="Folder for dsf.json and pictures.")] = Path("runs/dsf"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show token mixers as dynamical systems: size of the state, whether it grows, what is remembered by lag.

    At initial weights. What is remembered is that of the Jacobian and, where a mixer's linear system is
    written down, that of this system with its gates held. Your own class joins by name: made as
    MyMixer(width, heads), it maps (batch, tokens, width) to the same shape and may not look ahead; with start
    and advance its state is measured too.
    """
    from attlas.inspect import inspect_dsf

    import_from_here()
    check_folder(out)
    named = [part for name in mixer or () for part in ("--mixer", name)]
    said = shlex.join(["attlas", "inspect", "dsf", *named, "--length", str(length)])
    with Console(stderr=True).status("mixers") as status:
        result = inspect_dsf(tuple(mixer or ()), length=length, out=out, command=said, step=status.update)
        from attlas.report import print_dsf, write_dsf

        page = write_dsf(out).page
    if as_json:
        print(to_json(result), end="")
        return
    print_dsf(result)
    print(f"result   {out / 'dsf.json'}\npictures {page}")
