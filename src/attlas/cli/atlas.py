"""Commands on the atlas: list, show, claim, explain."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from attlas._common.errors import UsageError
from attlas._common.files import to_json
from attlas.cli.app import ATLAS, command

__all__ = ["claim", "explain", "list_", "show"]

SHADES = " .:-=+*#"
SHOWN_HEADS = 4

WIDE = 160  # columns of a terminal from which on titles fit beside the rest


@command(ATLAS)
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the systems of the atlas."""
    from attlas.catalog import all_cards

    cards = all_cards()
    if as_json:
        print(to_json([card.to_dict() for card in cards]), end="")
        return
    console = Console()
    # One line a system: where there is room for no title, `show` tells it.
    wide = console.width >= WIDE
    table = Table("name", "year", "room", "kind", *(["title"] if wide else []))
    for card in cards:
        table.add_row(card.key, str(card.year), card.room, card.kind, *([card.title] if wide else []))
    console.print(table)
    console.print(f"{len(cards)} systems; attlas show NAME tells more of one", style="dim", highlight=False)


@command(ATLAS)
def show(
    name: Annotated[str, typer.Argument(help="A name that attlas list shows.", show_default=False)],
) -> None:
    """Show the card of one system: what it is, where it lives, what differs from the official code."""
    from attlas.catalog import find, resolve

    card = find(name)
    console = Console(highlight=False)
    say = functools.partial(console.print, markup=False, sep="\n")
    say(f"{card.title} ({card.year})", style="bold")
    say(f"{card.source}, official code: {card.code or 'none'}", "", card.what, "")
    say(f"Lives in: {', '.join(card.lives)}")
    for heading, lines in (
        ("Differs from the official code", card.departures),
        ("Not verified", card.unverified),
    ):
        if lines:
            say(f"\n{heading}", style="bold")
            say(*(f"- {line}" for line in lines))
    if card.claim:
        claim = resolve(card.claim)
        say("\nClaim", style="bold")
        say(claim.says, f"Judged by: {claim.rule}")
        say(f"Measure it: attlas claim {card.key} (about {claim.minutes:.0f} minutes)")


@command(ATLAS)
def claim(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names that attlas list shows.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every system that has a claim.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds, the claim's own by default.")] = None,
    budget: Annotated[float | None, typer.Option(help="Minutes after which no further seed begins.")] = None,
    long: Annotated[bool, typer.Option("--long", help="The larger experiment, where there is one.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again what an interrupted run has.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for NAME.json.")] = Path("results"),
) -> None:
    """Measure a paper's central statement again: what it says, what came out, and whether it holds here."""
    from attlas.catalog import all_cards, find, run_claim

    if every == bool(names):
        raise UsageError("name the systems to measure, or give --all")
    chosen = [card for card in all_cards() if card.claim] if every else [find(name) for name in names or ()]
    results = []
    for card in chosen:
        with Console(stderr=True).status(card.key) as status:
            results.append(
                run_claim(
                    card,
                    seeds=seeds,
                    budget=budget,
                    long=long,
                    fresh=fresh,
                    folder=out,
                    step=status.update,
                )
            )
        if not as_json:
            _print_claim(results[-1], out / f"{card.key}.json")
    if as_json:
        print(to_json(results if len(results) > 1 else results[0]), end="")


@command(ATLAS)
def explain(
    pattern: Annotated[str, typer.Argument(help='For instance "causal & (window(256) | sink(4))".')],
    length: Annotated[int, typer.Option(min=1, help="Number of tokens.")] = 1024,
) -> None:
    """Show what a pattern keeps and costs at a length, and draw it.

    Sizes may depend on the length: window(elastic(64, 0.25)) is 64 + 0.25 * N tokens.
    """
    from attlas.attend import Shapes, cost
    from attlas.pattern import Tokens, causal, parse

    try:
        recipe = parse(pattern)
        rule = recipe.bind(N=length)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if rule.slots:
        raise UsageError(
            f"the pattern waits for tensors ({', '.join(sorted(rule.slots))}), which a command cannot give: "
            "bind them in Python, pattern.bind(...)"
        )
    tokens = Tokens(length)
    heads = rule.heads or 1
    shapes = Shapes(1, heads, length, 64)
    mine, whole = cost(rule, shapes), cost(causal(), shapes)
    most = max(int(rule.row_counts(tokens, tokens, head).max()) for head in range(heads))
    print(f"pattern   {recipe}")
    if recipe.free:
        print(f"          {rule} at N = {length}")
    print(f"pairs     {mine.pairs:,}, {mine.pairs / whole.pairs:.1%} of dense causal")
    print(f"computed  {mine.computed:,} in tiles, {mine.pairs / max(mine.computed, 1):.0%} of them useful")
    print(f"keys      {most:,} at most for a query, {most / length:.1%} of the tokens")
    print(f"FLOPs     {mine.flops:,} forward at head width 64, dense causal {whole.flops:,}")
    for head in range(min(heads, SHOWN_HEADS)):
        print("\nrows are queries, columns keys" + (f", head {head} of {heads}" if heads > 1 else ""))
        for row in rule.draw(length, pixels=32, head=head):
            print("  " + "".join(_shade(int(cell)) * 2 for cell in row).rstrip())


def _shade(share: int) -> str:
    """A character for a share in 0..255; blank only for none at all."""
    return SHADES[-(-share * (len(SHADES) - 1) // 255)]


def _print_claim(result: Mapping[str, Any], path: Path) -> None:
    for heading, text in (
        ("paper says", result["says"]),
        ("judged by", result["rule"]),
        ("measured", result["measured"]),
        ("verdict", result["verdict"]),
    ):
        print(f"{heading:<11}{text}")
    table = Table("value", "mean", "sd", "least", "largest")
    for name, row in result["summary"].items():
        table.add_row(name, *(f"{row[key]:.4g}" for key in ("mean", "sd", "least", "largest")))
    Console().print(table)
    print(f"{len(result['runs'])} seeds, {result['seconds'] / 60:.1f} minutes, written to {path}")
