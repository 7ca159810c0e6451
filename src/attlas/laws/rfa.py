"""What a single attention layer learns: random ReLU attention heads that are frozen, values that are fitted.

A point is a query x_0 and N keys x_1 .. x_N in R^d, x~ = [x; 1]. The values enter linearly, so that the layer
is a random-feature model: fit them with `ridge_fit`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["attention_features", "attention_kernel", "perceptron_features", "random_heads"]

BLOCK = 2**22  # numbers in a temporary of one block of points


def random_heads(
    count: int,
    width: int,
    *,
    mean: float = 0.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "M D D"]:
    """`count` frozen heads W_m of (width + 1)^2 entries N(0, 1/4), D = width + 1.

    For unit inputs x~_0^T W_m x~_i is then N(0, 1). `mean` is added to W_m as mean diag(I_width, 0): the
    biased heads, whose logit prefers keys near the query. Source: arXiv 2307.11353.
    """
    if count < 1 or width < 1:
        raise ValueError(f"heads need count and width of at least 1, got {count} and {width}")
    size = width + 1
    heads = torch.randn(count, size, size, generator=generator, dtype=dtype) / 2
    return heads + mean * torch.diag(torch.tensor([1.0] * width + [0.0], dtype=dtype))


def attention_features(
    query: Float[Tensor, "n d"], keys: Float[Tensor, "n N d"], heads: Float[Tensor, "M D D"]
) -> Float[Tensor, "n P"]:
    """psi_m = (1/N) sum_i relu(x~_0^T W_m x~_i) x~_i of every head, side by side: P = M (d + 1).

    ReLU and 1/N in place of the softmax. Source: arXiv 2307.11353 (no official code known). Raises
    ValueError where the heads are not of width d + 1. Cost: O(n M (d^2 + N d)); temporaries of O(M N) per
    point, in blocks of points; never (n, M, N, d).
    """
    if heads.shape[-1] != query.shape[-1] + 1:
        raise ValueError(
            f"heads must be of width {query.shape[-1] + 1}, one more than the points', got {heads.shape[-1]}"
        )
    rows = max(1, BLOCK // (len(heads) * max(keys.shape[1], heads.shape[-1])))
    parts = []
    for first, seen in zip(query.split(rows), keys.split(rows), strict=True):
        first, seen = _with_one(first), _with_one(seen)
        asked = torch.einsum("na,mab->nmb", first, heads)
        weights = (asked @ seen.mT).relu_() / keys.shape[1]
        parts.append((weights @ seen).flatten(1))
    return torch.cat(parts)


def perceptron_features(
    query: Float[Tensor, "n d"], keys: Float[Tensor, "n N d"], weights: Float[Tensor, "P inputs"]
) -> Float[Tensor, "n P"]:
    """relu(W vec(x~_0, .., x~_N)): random features of a fully connected net, blind to the set of keys.

    `weights` (P, (N + 1)(d + 1)). The baseline (RFMLP) of arXiv 2307.11353; compare at equal P, the number of
    fitted parameters.
    """
    points = _with_one(torch.cat([query[:, None], keys], 1)).flatten(1)
    if points.shape[1] != weights.shape[1]:
        raise ValueError(
            f"weights must have {points.shape[1]} columns, (keys + 1) (width + 1), got {weights.shape[1]}"
        )
    return (points @ weights.mT).relu_()


def attention_kernel(
    query: Float[Tensor, "n d"],
    keys: Float[Tensor, "n N d"],
    other_query: Float[Tensor, "m d"],
    other_keys: Float[Tensor, "m K d"],
) -> Float[Tensor, "n m"]:
    """lim psi psi'^T / M for M -> infinity unbiased heads: the attention layer of infinitely many heads.

    Mean over pairs (i, j) of keys of E[relu(a) relu(b)] x~_i.x~'_j with (a, b) Gaussian of variance
    |x~_0|^2 |x~_i|^2 / 4 and cosine c = (x~_0.x~'_0)(x~_i.x~'_j) / (product of the norms): the arc-cosine
    kernel of order 1, sd_a sd_b (sqrt(1 - c^2) + (pi - arccos c) c) / (2 pi). Cost: O(n m N K), in blocks of
    points. Raises ValueError for a set without points or keys.
    """
    for name, part in (
        ("query", query),
        ("keys", keys),
        ("other_query", other_query),
        ("other_keys", other_keys),
    ):
        if not part.numel():
            raise ValueError(
                f"attention_kernel: {name} must have at least one point, key and channel, got shape "
                f"{tuple(part.shape)}"
            )
    query, other_query = _with_one(query), _with_one(other_query)
    keys, other_keys = _with_one(keys), _with_one(other_keys)
    many, others = keys.shape[1], other_keys.shape[1]
    rows = max(1, BLOCK // (len(other_query) * many * others))
    flat = other_keys.flatten(0, 1)
    deviations = other_query.norm(dim=-1)[:, None] * other_keys.norm(dim=-1) / 2
    parts = []
    for first, seen in zip(query.split(rows), keys.split(rows), strict=True):
        both = (seen.flatten(0, 1) @ flat.mT).unflatten(0, seen.shape[:2]).unflatten(-1, deviations.shape)
        spread = torch.einsum("ni,mj->nimj", first.norm(dim=-1)[:, None] * seen.norm(dim=-1) / 2, deviations)
        cosine = ((first @ other_query.mT)[:, None, :, None] * both / 4 / spread).clamp(-1, 1)
        angle = torch.arccos(cosine)
        mean = spread * ((1 - cosine.square()).sqrt() + (math.pi - angle) * cosine) / (2 * math.pi)
        parts.append((mean * both).mean((1, 3)))
    return torch.cat(parts)


def _with_one(points: Tensor) -> Tensor:
    return torch.cat([points, points.new_ones(*points.shape[:-1], 1)], -1)
