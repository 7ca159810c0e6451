"""LSSAR: a port whose rows lose weight."""

from __future__ import annotations

from collections.abc import Mapping

from attlas.catalog.released import Released

__all__ = ["RELEASED"]

LENGTH, WIDTH, HEADS, POWER = 1024, 64, 4, 15.0
SPREADS = {"full": 1.0, "half": 0.5}
COMPARED = (
    "The file's two functions were run beside this form on 512 tokens: outputs agree to 1e-13 in float64 and "
    "to 5e-5 in float32."
)


def lost(seed: int) -> Mapping[str, float]:
    """Sums of the weights of rows, and how far out is off, for keys of two spreads around their mean."""
    import torch

    from attlas.attend import attend, lssar, lssar_port
    from attlas.pattern import causal

    torch.manual_seed(seed)
    found = {}
    ones = torch.ones(1, HEADS, LENGTH, 1)
    for name, spread in SPREADS.items():
        # A direction that all share: the smaller the spread around it, the less the cosines differ.
        shared = torch.randn(1, HEADS, 1, WIDTH)
        query, key = (shared + spread * torch.randn(1, HEADS, LENGTH, WIDTH) for _ in range(2))
        with torch.no_grad():
            port, ours = (
                attend(query, key, ones, pattern=causal(), **make(WIDTH, POWER)).flatten()
                for make in (lssar_port, lssar)
            )
        found[f"least sum, port, {name} spread"] = float(port.min())
        found[f"median sum, port, {name} spread"] = float(port.median())
        found[f"rows below half, port, {name} spread"] = float((port < 0.5).double().mean())
        found[f"least sum, formula, {name} spread"] = float(ours.min())
    return found


def _told(spread: str) -> str:
    name = f"port, {spread} spread"
    return (
        f"{{rows below half, {name}:.1%}} of the rows keep less than half of their weight (median {{median "
        f"sum, {name}:.2g}}, least {{least sum, {name}:.1e}})"
    )


RELEASED = (
    Released(
        system="lssar",
        point="A port adds 1e-8 to a sum of tiny powers, and rows lose weight",
        repository="On-Point-RND/transformer-architecture-generalization",
        file="models/lssar.py",
        function="lssar_attention",
        commit="6d3fc68cecd68356d2db1705e3d7e6a4a3621bd2",
        paper="Re-weighted weights are max(0, i A - o)^p divided by their sum: every row sums to 1.",
        release=(
            "This is a third party's port; the authors' code was not available. It raises to the power "
            "p = 15 as it is and divides by the sum plus 1e-8. Where the largest excess over the mean is "
            "0.3, the powers add up to about 1e-8 themselves."
        ),
        consequence=(
            "Rows whose weights differ little keep only part of their weight, or hardly any, so that their "
            "output shrinks; rows with one clear maximum are not touched."
        ),
        switch=(
            "`lssar_port(width, power)` is the port's form; `lssar(width, power)`, the formula, divides by "
            "the row's largest excess before the power, which changes nothing but the rounding."
        ),
        figures=lost,
        shown=(
            f"{LENGTH} tokens, width {WIDTH}, p = {POWER:g}, queries and keys scattered around a direction "
            f"that they share. Where they scatter as much as the direction is long, {_told('full')}; "
            f"where they scatter half as much, {_told('half')}. By the formula every row sums to 1 "
            f"(least {{least sum, formula, half spread:.6f}})."
        ),
        compared=COMPARED,
    ),
)
