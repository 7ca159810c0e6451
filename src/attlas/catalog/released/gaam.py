"""Gaussian adaptive attention: what K Gaussians, eps and padding do in the released module."""

from __future__ import annotations

from collections.abc import Mapping

from attlas.catalog.released import Released

__all__ = ["RELEASED"]

COMMIT = "145d1bc87b8c96d77e72dedecd6e8845e50cb5cd"
REPOSITORY = "gioannides/Gaussian-Adaptive-Attention"
FILE = "gaussian_adaptive_attention/GaussianBlock.py"
GAUSSIANS, LENGTH, PADDED, EPS = 5, 48, 16, 0.1
MANY, WIDE, OFFSET = 8, 7.0, 0.5
COMPARED = (
    "The package gaussian-adaptive-attention 0.1.5 ran beside this library's form (three axes, 2 to 8 "
    "heads, 3 to 5 Gaussians, with and without padding): equal to the last bit in float32."
)


def redundant(seed: int) -> Mapping[str, float]:
    """The released product of K Gaussians against one Gaussian."""
    import torch

    from attlas.layers.gaam import collapsed, released_weights

    torch.manual_seed(seed)
    x = torch.randn(64, LENGTH, dtype=torch.float64)
    offset = 0.5 * torch.randn(GAUSSIANS, dtype=torch.float64)
    scale = 0.5 + 1.5 * torch.rand(GAUSSIANS, dtype=torch.float64)
    # Offsets are in units of x: one variance for all rows makes them the same in each.
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    one, width = collapsed(offset, scale)
    many = released_weights(x, offset, scale, dim=1)
    single = released_weights(x, one[None], width[None], dim=1)
    return {"Gaussians": float(GAUSSIANS), "largest difference": (many - single).abs().max().item()}


def clamped(seed: int) -> Mapping[str, float]:
    """What weights sum to where the sum of the densities stays below eps."""
    import torch

    from attlas.layers.gaam import gaussian_weights, released_weights

    torch.manual_seed(seed)
    x, constant = torch.randn(64, LENGTH), torch.full((1, LENGTH), 3.0)
    many = torch.zeros(MANY), torch.full((MANY,), WIDE)
    one = torch.tensor([OFFSET]), torch.tensor([2.0])
    return {
        f"sum, {given}, {name}": weigh(rows, *gaussians, dim=1).sum(1).mean().item()
        for name, weigh in {"release": released_weights, "here": gaussian_weights}.items()
        for given, rows, gaussians in (("wide", x, many), ("constant", constant, one))
    }


def lost_eps(seed: int) -> Mapping[str, float]:
    """Outputs of the released wrapper for two eps, and of the formula with either."""
    import torch

    from attlas.layers import GAAM

    torch.manual_seed(seed)
    x = torch.randn(16, LENGTH)

    def change(official: bool) -> float:
        layers = [GAAM(1, eps=eps, official=official).requires_grad_(False) for eps in (1e-8, EPS)]
        for layer in layers:
            layer.scale.fill_(1.0)
        one, two = (layer.weights(x) for layer in layers)
        return ((one - two).abs().max() / one.max()).item()

    return {"change, release": change(True), "change, formula": change(False)}


def counted_padding(seed: int) -> Mapping[str, float]:
    """Weights of the real tokens of a padded row, relative to those of the row alone."""
    import torch

    from attlas.layers.gaam import gaussian_weights, released_weights

    torch.manual_seed(seed)
    x = 1 + torch.randn(64, LENGTH)
    valid = (torch.arange(LENGTH) < LENGTH - PADDED).expand_as(x)
    x = x.masked_fill(~valid, 0.0)
    real = x[:, : LENGTH - PADDED]
    offset, scale = torch.zeros(1), torch.ones(1)
    found = {}
    for name, weigh in {"release": released_weights, "here": gaussian_weights}.items():
        alone = weigh(real, offset, scale, dim=1)
        padded = weigh(x, offset, scale, dim=1, valid=valid)[:, : LENGTH - PADDED]
        found[f"change, {name}"] = ((padded - alone).abs().mean() / alone.mean()).item()
        found[f"sum, {name}"] = padded.sum(1).mean().item()
    return found


RELEASED = (
    Released(
        system="gaam",
        point="K Gaussians of a head are one",
        repository=REPOSITORY,
        file=FILE,
        function="GaussianAdaptiveAttention.forward",
        commit=COMMIT,
        paper=(
            "Several Gaussians with learned offsets and scales per head; the variance that they have "
            "together is given."
        ),
        release=(
            "The K densities share one variance, are multiplied, and the product is divided by its sum. A "
            "product of Gaussians is a Gaussian, and its constant cancels in the division wherever the sum "
            "exceeds eps (1e-8)."
        ),
        consequence=(
            "Wherever the sum exceeds eps, K adds 2 (K - 1) parameters a head and no function that one "
            "Gaussian does not have: only heads add modes, and at inference one Gaussian is enough. Where it "
            "does not, K scales the weights down (see the next point)."
        ),
        switch="`GAAM.collapse()`; the default form computes one Gaussian for any K.",
        figures=redundant,
        shown=(
            "Weights of {Gaussians:.0f} random Gaussians and of the one that they collapse to differ by "
            "{largest difference:.0e} at most, in float64."
        ),
        compared=COMPARED,
    ),
    Released(
        system="gaam",
        point="Weights vanish where the densities' sum is below eps",
        repository=REPOSITORY,
        file=FILE,
        function="GaussianAdaptiveAttention.forward",
        commit=COMMIT,
        paper="Weights are densities divided by their sum.",
        release=(
            "Weights are densities divided by max(their sum, 1e-8). The constants of K wide Gaussians "
            "multiply to a number below that, and the densities of a constant axis with an offset underflow, "
            "as its variance is eps alone."
        ),
        consequence="The weights then sum to less than 1, down to 0: the output, and its gradient, vanish.",
        switch="`GAAM(official=True)`; by default weights are a softmax of the exponents and sum to 1.",
        figures=clamped,
        shown=(
            f"{MANY} Gaussians of scale {WIDE:g} along {LENGTH} random entries: the weights sum to "
            "{sum, wide, release:.3f} in the release and to {sum, wide, here:.3f} here. A constant axis with "
            f"an offset of {OFFSET:g}: {{sum, constant, release:.3f}} and {{sum, constant, here:.3f}}."
        ),
        compared=COMPARED,
    ),
    Released(
        system="gaam",
        point="The wrapper's eps is read as another argument",
        repository=REPOSITORY,
        file=FILE,
        function="MultiHeadGaussianAdaptiveAttention.__init__",
        commit=COMMIT,
        paper="eps is added to the variance and bounds the sum of the weights from below.",
        release=(
            "The wrapper passes eps by position, where a head expects `mean_offset_init`, which nothing "
            "reads. Every head keeps its own eps of 1e-8."
        ),
        consequence="eps has no effect, whatever a user of the wrapper or of `GaussianBlock` gives.",
        switch="`GAAM(official=True)`; by default eps is used.",
        figures=lost_eps,
        shown=(
            f"From eps = 1e-8 to {EPS:g} the largest weight difference, relative to the largest weight, is "
            "{change, release:.3f} in the release and {change, formula:.3f} in the formula."
        ),
        compared=COMPARED,
    ),
    Released(
        system="gaam",
        point="Padding counts in the statistics",
        repository=REPOSITORY,
        file=FILE,
        function="GaussianAdaptiveAttention.forward",
        commit=COMMIT,
        paper="Mean, variance and normalisation are those of the features.",
        release=(
            "Padded entries are set to 0 for mean and variance and stay in their count; their weights stay "
            "in the sum that divides all weights."
        ),
        consequence=(
            "The weights of real entries depend on how far their row is padded, and thereby on the longest "
            "row of the batch."
        ),
        switch="`GAAM(official=True)`; by default padding counts nowhere.",
        figures=counted_padding,
        shown=(
            f"Rows of {LENGTH - PADDED} entries around 1, padded to {LENGTH}: their weights change by "
            "{change, release:.0%} on average in the release and by {change, here:.0%} here; they then sum "
            "to {sum, release:.2f} and {sum, here:.2f}."
        ),
        compared=COMPARED,
    ),
)
