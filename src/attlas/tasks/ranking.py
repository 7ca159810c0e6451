"""Quality of ranked lists: recall and NDCG of recommendations, filtered ranks of link prediction.

Legend: U users, I items, Q questions, V candidates.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["filtered_ranks", "rank_summary", "recall_and_ndcg"]


def recall_and_ndcg(
    scores: Float[Tensor, "U I"], known: Bool[Tensor, "U I"], wanted: Bool[Tensor, "U I"], most: int
) -> tuple[float, float]:
    """(recall@most, NDCG@most) over all items that are not `known`, means over users who want something.

    recall = found / wanted; NDCG = Σ_found 1/log2(place + 1) over that of the best list, which has
    min(wanted, most) hits in front. KGAT's released code divides by the best order of the hits it found
    instead, which is larger. ValueError: a wanted item that is known, nobody who wants anything, a score NaN.
    """
    _check(scores, "recall_and_ndcg")
    if most < 1 or bool((known & wanted).any()):
        raise ValueError("recall_and_ndcg: most must be at least 1, and no wanted item may be known already")
    asked = wanted.any(1)
    if not bool(asked.any()):
        raise ValueError("recall_and_ndcg: no user wants any item")
    shown = scores.masked_fill(known, -float("inf"))[asked].topk(min(most, scores.shape[1]), dim=1).indices
    hits = wanted[asked].gather(1, shown).to(torch.float64)
    count = wanted[asked].sum(1)
    gain = 1.0 / torch.arange(2, hits.shape[1] + 2, dtype=torch.float64).log2()
    best = gain.cumsum(0)[count.clamp(max=hits.shape[1]) - 1]
    return float((hits.sum(1) / count).mean()), float(((hits * gain).sum(1) / best).mean())


def _check(scores: Tensor, where: str) -> None:
    # Nothing compares above NaN: it would rank first.
    if bool(scores.isnan().any()):
        rows = int(scores.isnan().any(1).sum())
        raise ValueError(f"{where}: scores must be numbers, got NaN in {rows} of {len(scores)} rows")


def filtered_ranks(
    scores: Float[Tensor, "Q V"], target: Int[Tensor, "Q"], known: Bool[Tensor, "Q V"]
) -> Float[Tensor, "Q"]:
    """Rank of each target among candidates that are not known answers themselves, from 1, float64.

    Equal scores count half ("realistic": the mean of the best and the worst rank that ties allow).
    ValueError: a score is NaN.
    """
    _check(scores, "filtered_ranks")
    own = scores.gather(1, target[:, None])
    others = ~known.scatter(1, target[:, None], True)
    above = ((scores > own) & others).sum(1)
    equal = ((scores == own) & others).sum(1)
    return 1.0 + above.to(torch.float64) + 0.5 * equal


def rank_summary(ranks: Float[Tensor, "Q"]) -> dict[str, float]:
    """{"MRR", "hits@1", "hits@3", "hits@10"} of ranks; ValueError without any."""
    if not ranks.numel():
        raise ValueError("rank_summary: no rank to summarise")
    found = {"MRR": float(ranks.reciprocal().mean())}
    return found | {f"hits@{most}": float((ranks <= most).double().mean()) for most in (1, 3, 10)}
