"""Calls without queries or without keys: empty or zero outputs on every backend."""

from typing import Any

import pytest
import torch

from attlas.attend import attend
from attlas.pattern import Tokens, causal, per_head, window


@pytest.mark.parametrize("queries, keys", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("backend", ["reference", "sdpa", "rows", "block", "auto"])
@pytest.mark.parametrize("pattern", [None, causal(), per_head([causal(), window(3)] * 2)], ids=str)
def test_no_queries_or_no_keys(queries: int, keys: int, backend: str, pattern: Any) -> None:
    query = torch.randn(2, 4, queries, 8, requires_grad=True)
    key, value = torch.randn(2, 2, keys, 8, requires_grad=True), torch.randn(2, 2, keys, 6)
    spaces = (
        [None] if backend == "block" else [None, Tokens(keys, valid=torch.ones(2, keys, dtype=torch.bool))]
    )
    for k_at in spaces:
        options: dict[str, Any] = {"pattern": pattern, "backend": backend, "k_at": k_at}
        out = attend(query, key, value, **options)
        assert out.shape == (2, 4, queries, 6) and not out.any()
        for grad in torch.autograd.grad(out.sum(), (query, key), allow_unused=True):
            assert grad is None or not grad.any()
        if backend != "sdpa":
            _, state = attend(query, key, value, return_state=True, **options)
            assert state.lse.shape == (2, 4, queries) and (state.lse == -torch.inf).all()
