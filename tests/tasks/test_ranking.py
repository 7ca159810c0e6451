"""Measures of ranked lists against scikit-learn and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from attlas.tasks.ranking import filtered_ranks, rank_summary, recall_and_ndcg


def test_recall_and_ndcg_are_those_of_scikit_learn():
    torch.manual_seed(0)
    scores, known = torch.rand(9, 30), torch.rand(9, 30) < 0.2
    wanted = (torch.rand(9, 30) < 0.2) & ~known
    wanted[4] = False  # a user who wants nothing is left out
    recall, ndcg = recall_and_ndcg(scores, known, wanted, 5)
    hits, gains = [], []
    for user in range(9):
        if user == 4:
            continue
        left = (~known[user]).nonzero()[:, 0]
        truth, found = wanted[user][left].numpy(), scores[user][left].numpy()
        top = np.argsort(-found)[:5]
        hits.append(truth[top].sum() / truth.sum())
        gains.append(ndcg_score([truth.astype(float)], [found], k=5))
    assert recall == pytest.approx(np.mean(hits)) and ndcg == pytest.approx(np.mean(gains))


def test_wrong_questions():
    table = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="no wanted item may be known already"):
        recall_and_ndcg(torch.rand(2, 3), table, table, 2)
    with pytest.raises(ValueError, match="no user wants any item"):
        recall_and_ndcg(torch.rand(2, 3), table, ~table, 2)
    with pytest.raises(ValueError, match="no rank to summarise"):
        rank_summary(torch.zeros(0, dtype=torch.float64))


def test_ranks_leave_out_other_answers_and_share_ties():
    scores = torch.tensor([[3.0, 2.0, 1.0, 2.0, 2.0, 9.0]] * 3)
    known = torch.tensor(
        [[False] * 6, [True, False, False, False, False, True], [False, True, True, True, True, False]]
    )
    ranks = filtered_ranks(scores, torch.tensor([1, 1, 2]), known)
    # Above 1: places 0 and 5 (left out in the second row); equal: places 3 and 4; the third knows those
    # above.
    assert ranks.tolist() == [4.0, 2.0, 3.0]
    assert rank_summary(ranks) == {
        "MRR": pytest.approx((1 / 4 + 1 / 2 + 1 / 3) / 3), "hits@1": 0.0,
        "hits@3": pytest.approx(2 / 3), "hits@10": 1.0,
    }  # fmt: skip


def test_scores_that_are_no_numbers_do_not_rank_first():
    scores, known = torch.tensor([[0.5, 0.1], [float("nan"), 0.2]]), torch.zeros(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="filtered_ranks: scores must be numbers, got NaN in 1 of 2 rows"):
        filtered_ranks(scores, torch.tensor([0, 0]), known)
    wanted = torch.tensor([[True, False], [True, False]])
    with pytest.raises(ValueError, match="recall_and_ndcg: scores must be numbers, got NaN in 1 of 2 rows"):
        recall_and_ndcg(scores, known, wanted, 1)
