"""Only Attlas' attention may take what a ragged cache hands to a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attlas._common.errors import UnsupportedModel
from attlas.cache import RaggedCache
from attlas.pattern import causal


class Reader(torch.nn.Module):
    """Attention of a model that works on what it has cached."""

    def forward(self, states: Any, how: Callable[[Any], Any]) -> Any:
        return how(states)


@pytest.mark.parametrize("which", [0, 1], ids=["keys", "values"])
@pytest.mark.parametrize(
    ("how", "named"),
    [
        (lambda states: states.shape, r"\.shape"),
        (lambda states: states[:, :1], r"\[\.\.\.\]"),
        (lambda states: torch.chunk(states, 2, dim=1), "torch's chunk"),
        (lambda states: torch.ones(1) @ states, "torch's matmul"),
    ],
    ids=["attribute", "index", "function", "operator"],
)
def test_other_code_that_reads_what_is_cached_is_told_why(
    which: int, how: Callable[[Any], Any], named: str
) -> None:
    cache = RaggedCache([causal()], heads=2, kv_heads=1)
    states = cache.update(torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4), 0)[which]
    with pytest.raises(
        UnsupportedModel,
        match=rf"Reader reads the cached keys or values itself \({named}\), but .* run the model",
    ):
        Reader()(states, how)
    with pytest.raises(UnsupportedModel, match=r"this code reads .* pass past_key_values=transformers.Dyn"):
        how(states)
    assert cache.get_seq_length() == 0


def test_an_entry_is_stored_once_and_for_its_own_layer() -> None:
    cache = RaggedCache([causal()] * 2, heads=2, kv_heads=1)
    entry, _ = cache.update(torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4), 0)
    with pytest.raises(UnsupportedModel, match=r"layer 1 attends to the keys of layer 0: .* share keys"):
        entry.parts(None, 1)
    assert len(entry.parts(None, 0)) == 1
    with pytest.raises(UnsupportedModel, match=r"layer 0 attends twice to the same new keys"):
        entry.parts(None, 0)
    assert cache.get_seq_length() == 3
