"""What is asked of attend is seen by those who watch, and by nobody else."""

import torch

from attlas.attend import attend, observing, plan
from attlas.pattern import causal


def test_every_call_is_seen_by_every_watcher_inside() -> None:
    query = torch.randn(1, 2, 5, 4)
    outer, inner = [], []
    with observing(outer.append):
        attend(query, query, query, pattern=causal())
        with observing(inner.append):
            step = plan(query, query, query)
            step(query[:, :, :3], query, query)
    attend(query, query, query)
    assert [request.queries for request in outer] == [5, 3]
    assert [request.queries for request in inner] == [3]  # a plan alone attends to nothing
    assert outer[0].pattern is causal() or str(outer[0].pattern) == "causal"


def test_a_failing_block_leaves_no_watcher() -> None:
    seen: list[object] = []
    query = torch.randn(1, 1, 2, 4)
    try:
        with observing(seen.append):
            raise RuntimeError
    except RuntimeError:
        pass
    attend(query, query, query)
    assert not seen
