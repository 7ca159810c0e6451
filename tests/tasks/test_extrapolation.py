"""The loss at a length: against a loop over single windows, and what it holds fixed."""

import pytest
import torch
from torch import Tensor, nn

from attlas.tasks import ByteText, losses_at_lengths
from attlas.tasks.extrapolation import endings


class Chain(nn.Module):
    """Logits that follow from the bytes `back` steps ago alone: a table."""

    def __init__(self, back: int = 0) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(256, 256, generator=torch.Generator().manual_seed(1)))
        self.back, self.calls = back, []

    def forward(self, inputs: Tensor, where: Tensor) -> Tensor:
        self.calls.append((tuple(inputs.shape), self.training))
        seen = torch.roll(inputs, self.back, 1)
        seen[:, : self.back] = 0
        return self.table[seen][where]


def text(count: int = 900) -> ByteText:
    generator = torch.Generator().manual_seed(0)
    return ByteText(torch.zeros(1, dtype=torch.int64), torch.randint(0, 256, (count,), generator=generator))


def test_loss_is_that_of_a_loop_over_windows() -> None:
    model, source = Chain(), text()
    found = losses_at_lengths(model, source, [32, 100], tail=32, windows=5)
    table = model.table.detach().double().log_softmax(-1)
    losses = [
        -float(table[source.test[place - 1], source.test[place]])
        for end in endings(source, 100, 5).tolist()
        for place in range(end - 31, end + 1)
    ]
    expected = sum(losses) / len(losses)
    assert found == pytest.approx({32: expected, 100: expected}, rel=1e-6)  # no context matters here


def test_context_before_the_tail_is_seen() -> None:
    found = losses_at_lengths(Chain(back=20), text(), [32, 64, 500], tail=32, windows=5)
    assert found[64] == pytest.approx(found[500], rel=1e-6)  # the 20 bytes back are there from 52 on
    assert found[32] != pytest.approx(found[64], rel=1e-3)


def test_model_keeps_its_mode_and_long_contexts_take_fewer_rows_a_call() -> None:
    model = Chain().train()
    losses_at_lengths(model, text(9000), [128, 4096], windows=4)
    assert model.training
    assert model.calls == [((4, 128), False), ((2, 4096), False), ((2, 4096), False)]


@pytest.mark.parametrize(
    ("lengths", "named", "says"),
    [
        ([], {}, "lengths must hold numbers of at least tail = 128"),
        ([64], {}, "got \\[64\\]"),
        ([128], {"windows": 0}, "windows must be at least 1, got 0"),
        ([128, 900], {}, "a context of 900 bytes and its last target do not fit in 900 held-out bytes"),
    ],
)
def test_errors(lengths: list[int], named: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        losses_at_lengths(Chain(), text(), lengths, **named)
