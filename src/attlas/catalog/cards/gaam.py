"""GAAM."""

from __future__ import annotations

from attlas.catalog.card import Card

__all__ = ["CARD"]

CARD = Card(
    key="gaam",
    title="Gaussian Adaptive Attention is All You Need: Robust Contextual Representations",
    year=2024,
    room="layers",
    kind="self-gate",
    what=(
        "Every entry of an axis is multiplied by a weight that it gives itself: a Gaussian of its "
        "standardised value, with learned offset and scale per head, normalised over the head's part of the "
        "axis. No pair is looked at. K Gaussians per head multiply to one, so that inference needs one. The "
        "importance factor is the min-max scaled weight."
    ),
    lives=(
        "attlas.layers.gaam:GAAM",
        "attlas.layers.gaam:GaussianBlock",
        "attlas.layers.gaam:gaussian_weights",
        "attlas.layers.gaam:released_weights",
        "attlas.layers.gaam:importance",
    ),
    source="arXiv:2401.11143",
    code="gioannides/Gaussian-Adaptive-Attention",
    departures=(
        "Weights are a softmax of the summed exponents, not densities over max(their sum, 1e-8): equal where "
        "the sum is above that, and still weights where it underflows. A constant axis gets equal weights. "
        "official=True is the released arithmetic.",
        "Padding counts nowhere; in the released code it counts in n, in the variance and in the sum.",
        "Scales start at the paper's 2; the released code draws them, exp(N(0, 1)) in the repository and "
        "N(0, 1) in the package 0.1.5.",
        "As a token mixer it has one head along the tokens: heads are parts of the axis, which would not see "
        "each other.",
        "The claim's nets have no convolutions between attention and classes, and GAAM's gain on speech and "
        "CIFAR-100 is not looked for. The form with a residual connection is judged, as it read better with "
        "seed 1000, which the claim does not use; the form without is told beside it.",
    ),
    unverified=(
        "The paper's figures on speech, images and news.",
        "The form inside grouped-query attention: where it stands could not be checked, and it is not here.",
    ),
    claim="attlas.catalog.claims.gaam:CLAIM",
)
