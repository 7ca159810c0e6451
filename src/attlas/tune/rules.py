"""The candidate rules of a search: elastic spans, what each costs, and how much influence each one misses.

Shapes: L layers, G heads (KV heads, or query heads), b blocks of a length, C rules.
MoA, arXiv 2406.14909, sections 3 and 4.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attlas.pattern import Elastic, Pattern, band_rule, span_rule

__all__ = ["Charge", "Rule", "RuleSet", "rule_grid"]

Charge = Literal["deployed", "searched"]


@dataclass(frozen=True, order=True)
class Rule:
    """One elastic span: S(N) = alpha + beta * N tokens of sink and window together."""

    alpha: float
    beta: float

    def __str__(self) -> str:
        return f"{self.alpha:g} + {self.beta:g} N"


@dataclass(frozen=True)
class RuleSet:
    """Rules with the settings that turn them into masks and costs.

    `charge` says which mask and which cost the search uses:

    - "deployed" (default): what really runs. Cache c = block * ceil(max(min(int(S), N), minimum) / block)
      tokens, sink *inside* it, token window i - j < c - sink; cost min(c, N) / N.
    - "searched": the released code's search. floor(S / block) >= 1 whole blocks of band *beside* the sink
      block; cost min(floor(S / block) + 1, b) / b. Up to one block more than is then deployed.

    The default is a departure from the released code: a budget there is an upper estimate (0.5 searched is
    0.44 deployed at N = 1024); here it is the density that a user gets.

    `causal=False` (encoders, ours): the window reaches |i - j| < (c - sink) / 2 on both sides (c at most 2
    N), and the cost is the mean share of keys per row; nothing is cached.
    """

    rules: tuple[Rule, ...]
    block: int = 64
    sink: int = 64
    minimum: int = 128
    causal: bool = True
    charge: Charge = "deployed"

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("rules must hold at least one rule, got none; widen the grid")
        if self.block < 1 or self.sink % self.block or self.sink < 0:
            raise ValueError(f"sink must be a multiple of block, got sink {self.sink} and block {self.block}")
        if self.minimum % self.block or self.minimum < self.sink + self.block:
            raise ValueError(
                f"minimum must be a multiple of block {self.block} that holds the sink and one more block "
                f"({self.sink + self.block}), got {self.minimum}"
            )
        if self.charge not in ("deployed", "searched"):
            raise ValueError(f"charge must be 'deployed' or 'searched', got {self.charge!r}")
        if not self.causal and (self.charge == "searched" or self.block % 2 or self.sink % 2):
            raise ValueError(
                "rules of a model that is not causal need charge 'deployed' and an even block and sink, got "
                f"{self.charge!r}, {self.block} and {self.sink}"
            )

    def __len__(self) -> int:
        return len(self.rules)

    def window(self, index: int) -> Elastic:
        """The window of rule `index` in tokens: ring (causal), or the reach to one side."""
        rule, sides = self.rules[index], 1 if self.causal else 2
        return Elastic(
            rule.alpha / sides,
            rule.beta / sides,
            minimum=self.minimum // sides,
            multiple=self.block // sides,
            offset=-self.sink // sides,
        )

    def windows(self, length: int) -> np.ndarray:
        """Tokens w of the deployed windows (i - j < w, or |i - j| < w if not causal), int64 (C,)."""
        return np.array([self.window(index).value(length) for index in range(len(self))], dtype=np.int64)

    def sizes(self, length: int) -> np.ndarray:
        """Deployed sizes c in tokens, sink and window, int64 (C,); never below `minimum`, even above N."""
        return self.windows(length) * (1 if self.causal else 2) + self.sink

    def deployed_density(self, length: int) -> np.ndarray:
        """Share of the KV entries (causal) or of the pairs (not causal) that a rule keeps, (C,)."""
        if self.causal:
            return np.minimum(self.sizes(length), length) / length
        rows = np.arange(length)
        low = np.maximum(rows - self.windows(length)[:, None] + 1, 0)
        high = np.minimum(rows + self.windows(length)[:, None], length)
        return (high - low + np.minimum(low, self.sink)).mean(1) / length

    def density(self, length: int) -> np.ndarray:
        """What the search charges for each rule, (C,); see `charge`."""
        if self.charge == "deployed":
            return self.deployed_density(length)
        blocks = self._blocks(length)
        return np.minimum(self._bands(length) + self.sink // self.block, blocks) / blocks

    def coverage(self, length: int) -> np.ndarray:
        """Share of a key block at block distance d that a rule's band covers, (C, b); the sink not counted.

        Exact in pairs: of block distance d, the pairs with block * d + r - s < w for row r and key s of
        their blocks. Only the last block of a token window is a fraction (0.49 of 64 x 64); its influence
        is taken to be spread evenly.
        """
        blocks, block = self._blocks(length), self.block
        distance = np.arange(blocks)
        if self.charge == "searched":
            return (distance < self._bands(length)[:, None]).astype(float)
        offset = np.arange(1 - block, block)
        pairs = block - np.abs(offset)
        apart = block * distance[:, None] + offset
        inside = np.abs(apart) < self.windows(length)[:, None, None]
        # On the diagonal of a causal model only r >= s exists.
        exists = pairs * (apart >= 0) if self.causal else np.broadcast_to(pairs, apart.shape)
        return (inside * exists).sum(-1) / exists.sum(-1)

    def block_cover(self, index: int, length: int) -> Float[Tensor, "b b"]:
        """The share of every block that rule `index` keeps, sink columns included; 0 above the diagonal."""
        blocks = self._blocks(length)
        apart = torch.arange(blocks)[:, None] - torch.arange(blocks)
        cover = torch.from_numpy(self.coverage(length)[index])[apart.abs()]
        cover[:, : self.sink // self.block] = 1.0
        return cover.tril() if self.causal else cover

    def block_mask(self, index: int, length: int) -> Bool[Tensor, "b b"]:
        """Blocks of which rule `index` keeps at least one pair."""
        return self.block_cover(index, length) > 0

    def losses(self, influence: Float[Tensor, "*batch b b"], length: int) -> Float[Tensor, "*batch C"]:
        """Influence that each rule misses: sum over blocks of influence * (1 - cover), float64.

        Influence is first summed by block distance (sink columns apart, they are always kept), so that all
        rules together cost O(b (b + C)) per head and no rule needs a b x b mask.
        """
        blocks = self._blocks(length)
        if influence.shape[-1] != blocks:
            raise ValueError(
                f"influence has {influence.shape[-1]} blocks, but length {length} has {blocks} of "
                f"{self.block} "
                "tokens; profile and search with the same block"
            )
        rest = influence.double().clone()
        rest[..., : self.sink // self.block] = 0
        by_distance = torch.stack([rest.diagonal(-d, -2, -1).sum(-1) for d in range(blocks)], -1)
        if not self.causal:
            above = [rest.diagonal(d, -2, -1).sum(-1) for d in range(1, blocks)]
            by_distance[..., 1:] += torch.stack(above, -1) if above else 0
        missed = torch.from_numpy(1 - self.coverage(length)).to(by_distance)
        return by_distance @ missed.T

    def pattern(self, index: int) -> Pattern:
        """Rule `index` as an elastic pattern, exactly as it is deployed."""
        rule, build = self.rules[index], span_rule if self.causal else band_rule
        return build(rule.alpha, rule.beta, sink=self.sink, block=self.block, minimum=self.minimum)

    def _blocks(self, length: int) -> int:
        if length < 1 or length % self.block:
            raise ValueError(f"length must be a multiple of block {self.block}, got {length}")
        return length // self.block

    def _bands(self, length: int) -> np.ndarray:
        bands = [math.floor((rule.alpha + rule.beta * length) / self.block) for rule in self.rules]
        return np.maximum(np.array(bands, dtype=np.int64), 1)


def rule_grid(
    lengths: Sequence[int],
    extend: int | None = None,
    *,
    alpha_step: int | None = None,
    betas: int = 9,
    block: int = 64,
    sink: int = 64,
    minimum: int | None = None,
    causal: bool = True,
    charge: Charge = "deployed",
) -> RuleSet:
    """The rules of a search over profiled `lengths` and the extension length `extend`.

    alpha runs from -min(lengths) to max(lengths) by `alpha_step` (default min(lengths) / 2, the ratio of the
    paper's 1024 to its 2048), beta over `betas` even steps of [0, 1]. Kept: 0 < S at the shortest length,
    S <= N at the longest profiled one and at `extend` (S may exceed shorter lengths: it is capped there). If
    not `causal`, a window has two sides: beta runs to 2, and S <= 2 N. Sorted by the span at the longest
    length; of rules with equal sizes at all these lengths, the one of least |alpha| stays. `minimum`: the
    smallest cache, default sink + block (128).

    The paper's defaults (2048, 4096, 8192; extend 16384; step 1024) give 48 rules; 1024, 2048 -> 4096 gives
    28 at the default step. Raises ValueError where nothing is left.
    """
    if not lengths or any(later <= earlier for earlier, later in itertools.pairwise(lengths)):
        raise ValueError(f"lengths must be given and increase, got {list(lengths)}")
    longest = lengths[-1] if extend is None else extend
    if longest < lengths[-1]:
        raise ValueError(f"extend must be at least the longest profiled length {lengths[-1]}, got {extend}")
    step = lengths[0] // 2 if alpha_step is None else alpha_step
    sides = 1 if causal else 2
    if step < 1 or betas < 2:
        raise ValueError(f"alpha_step must be at least 1 and betas at least 2, got {step} and {betas}")
    rules = [
        Rule(float(alpha), float(beta))
        for alpha in range(-lengths[0], lengths[-1] + 1, step)
        for beta in np.linspace(0, sides, betas)
        if alpha + beta * lengths[0] > 0
        and alpha + beta * lengths[-1] <= sides * lengths[-1]
        and alpha + beta * longest <= sides * longest
    ]
    rules.sort(key=lambda rule: (rule.alpha + rule.beta * longest, rule.beta))
    floor = sink + block if minimum is None else minimum
    settings: dict[str, Any] = dict(block=block, sink=sink, minimum=floor, causal=causal, charge=charge)
    # Twins with equal sizes at every length that counts only give the solver ties to break.
    twins: dict[tuple[int, ...], Rule] = {}
    for rule in rules:
        sizes = tuple(int(RuleSet((rule,), **settings).sizes(at)[0]) for at in (*lengths, longest))
        if sizes not in twins or abs(rule.alpha) < abs(twins[sizes].alpha):
            twins[sizes] = rule
    return RuleSet(tuple(twins.values()), **settings)
