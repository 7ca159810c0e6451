"""The command's frame: help, exit codes, and how a command is registered."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

try:
    import typer
except ModuleNotFoundError as missing:  # the core installs without the tool's packages
    raise SystemExit(
        f"attlas: the command needs {missing.name}; install the tool with: pip install 'attlas[tune]'"
    ) from None

import attlas
from attlas._common.errors import UsageError

__all__ = ["ATLAS", "GRAPHS", "MODELS", "app", "command", "import_from_here", "main"]

EXIT_USAGE, EXIT_INTERRUPTED = 2, 130
_Function = TypeVar("_Function", bound=Callable[..., None])

HELP = """
Shrinks the key-value cache of a pretrained transformer without training: finds how far back each attention \
head has to look, lets the model run with just that, and reports what was gained and lost.

[bold]First steps[/bold]

  attlas tune demo --out runs/demo

  attlas generate demo --plan runs/demo/plan.json --prompt "Who wrote Hamlet?"

  attlas explain "causal & (window(256) | sink(4))" --length 4096

The first tunes SmolLM2-135M, without a network, in 24 minutes on 2 cores. It writes runs/demo/report.html \
to read, and runs/demo/plan.json, the plan: what each head may see. The second answers with that plan. The \
third needs no model: it draws a pattern, here a window of 256 tokens and the first 4.

[bold]A MODEL[/bold] is a folder with a Hugging Face model, a GGUF file, the name of a model on the hub, or \
[bold]demo[/bold].

[bold]The atlas[/bold] holds published attention systems: what each one is, how this version differs from \
the official code, and a claim of its paper that can be measured again here.

[bold]Exit codes[/bold]: 0 done; 2 the input cannot work, the message says why; 130 interrupted: the same \
command again continues.
"""
MODELS, GRAPHS, ATLAS = "On a model", "On a graph", "On the atlas and on patterns"

app = typer.Typer(
    name="attlas",
    help=HELP,
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (sys.argv by default) and return its exit code."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="attlas")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except BrokenPipeError:
        # The reader of a pipe has gone (attlas list | head): nothing is wrong here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def command(panel: str, group: typer.Typer = app) -> Callable[[_Function], _Function]:
    """Registers a command of a group in a panel of the help; see `_guarded` for its exit codes."""

    def register(function: _Function) -> _Function:
        group.command(function.__name__.rstrip("_"), rich_help_panel=panel)(_guarded(function))
        return function

    return register


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    """A UsageError becomes its message and exit code 2, Ctrl-C becomes 130."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except UsageError as error:
            print(f"attlas: {error}", file=sys.stderr)
            raise typer.Exit(EXIT_USAGE) from None
        except KeyboardInterrupt:
            print("attlas: interrupted; run the same command again to continue", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return run


def import_from_here() -> None:
    """As `python -m` has it: a class of the user's stands in the folder where the command is given."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)


def _show_version(asked: bool) -> bool:
    if asked:
        print(f"attlas {attlas.__version__}")
        raise typer.Exit()
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass
