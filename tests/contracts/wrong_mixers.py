"""Mixers that are wrong in one way each, for the checks of `attlas.layers.check_mixer` to find."""

import torch
from torch import nn

from attlas.layers import Setting
from attlas.scan.state import State


class Wrong(nn.Module):
    """Running means of a linear map, spoilt in one way each."""

    def __init__(self, setting):
        super().__init__()
        self.map = nn.Linear(setting.width, setting.width)
        self.cross = setting.cross

    def mean(self, x, valid):
        count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return x.cumsum(1) / count

    def forward(self, x, context=None, *, valid=None):
        if self.cross:
            return x * self.map(context).mean(1, keepdim=True)
        return self.mean(self.map(x), valid)

    def start(self, batch):
        nothing = self.map.weight.new_zeros(batch, self.map.out_features)
        return State({"sum": nothing}, torch.zeros(batch, dtype=torch.int64))

    def advance(self, x, state):
        total = self.map(x).cumsum(1) + state["sum"][:, None]
        count = state.position[:, None] + torch.arange(1, x.shape[1] + 1)
        after = State({"sum": total[:, -1]}, state.position + x.shape[1])
        return total / count[..., None], after


class Right(Wrong):
    """The same, not spoilt: what is found in the others is their own."""


class Leaks(Wrong):
    def mean(self, x, valid):
        return super().mean(x, valid) + 1e-4 * x.flip(1).cumsum(1).flip(1)


class LeaksBeyondWindows(Wrong):
    """What short checks do not see: every token reads all others, once there are more than 16."""

    enough = 16

    def mean(self, x, valid):
        mean = super().mean(x, valid)
        return mean + x.mean(1, keepdim=True) if x.shape[1] > self.enough else mean


class LeaksBeyondChunks(LeaksBeyondWindows):
    enough = 64


class LeaksInTraining(Wrong):
    """The mean over all tokens in training, a kept one in evaluation: batch normalisation."""

    def __init__(self, setting):
        super().__init__(setting)
        self.norm = nn.BatchNorm1d(setting.width)

    def mean(self, x, valid):
        return super().mean(self.norm(x.mT).mT, valid)


class DropsInTraining(Wrong):
    def mean(self, x, valid):
        return super().mean(nn.functional.dropout(x, training=self.training), valid)


class MixesNothing(Wrong):
    def mean(self, x, valid):
        return x


class SeesFour(Wrong):
    """A window: right if its entry says that it is local."""

    def mean(self, x, valid):
        return nn.functional.pad(x, (0, 0, 3, 0)).unfold(1, 4, 1).mean(-1)


class OnlyLater(Wrong):
    def mean(self, x, valid):
        return x.flip(1).cumsum(1).flip(1)


class IgnoresTheContext(Wrong):
    def forward(self, x, context=None, *, valid=None):
        return self.map(x)


class SeesHalfTheContext(Wrong):
    def forward(self, x, context=None, *, valid=None):
        return super().forward(x, context[:, : context.shape[1] // 2 + 1])


class IgnoresTheQuery(Wrong):
    def forward(self, x, context=None, *, valid=None):
        return self.map(context).mean(1, keepdim=True).expand_as(x)


class LeaksLength(Wrong):
    def mean(self, x, valid):
        return super().mean(x, valid) * (1 + x.shape[1])


class ForgetsTheSum(Wrong):
    """Every token divides by the count, and only its own is there: CAB's causal ABC."""

    def mean(self, x, valid):
        return x / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]


class MixesTheBatch(Wrong):
    def mean(self, x, valid):
        return super().mean(x, valid) - 0.01 * x.mean(0)


class ReadsPadding(Wrong):
    def mean(self, x, valid):
        mean = super().mean(x, valid)
        return mean if valid is None else mean * valid[..., None]


class CountsPadding(Wrong):
    """Content of padding is left out, but it stays in the mean's count."""

    def mean(self, x, valid):
        return (x if valid is None else x * valid[..., None]).mean(1, keepdim=True).expand_as(x)


class StartsBehindPadding(Wrong):
    """Content of padding is left out, and it is counted where it comes first."""

    def mean(self, x, valid):
        return super().mean(x if valid is None else x * valid[..., None], valid)


class ForgetsItsState(Wrong):
    def advance(self, x, state):
        return super().advance(x, self.start(len(x)))


class ForgetsBeyondWindows(Wrong):
    """Right up to 16 tokens, then the sum starts again."""

    def advance(self, x, state):
        kept = state["sum"] * (state.position < 16)[:, None]
        return super().advance(x, State({"sum": kept}, state.position))


class ChangesItsState(Wrong):
    def advance(self, x, state):
        out, after = super().advance(x, state)
        state["sum"].add_(1.0)
        return out, after


class OneStateForAll(Wrong):
    """A state of the first row serves the whole batch."""

    def advance(self, x, state):
        return super().advance(x, State({"sum": state["sum"][:1].expand_as(state["sum"])}, state.position))


class EvenOnly(Wrong):
    def mean(self, x, valid):
        return x.unflatten(1, (-1, 2)).flatten(1, 2)


class Shortens(Wrong):
    def mean(self, x, valid):
        return x[:, : x.shape[1] // 2 * 2]


class NoNumber(Wrong):
    def mean(self, x, valid):
        return super().mean(x, valid) / (x.shape[1] - 1)


class Random(Wrong):
    def mean(self, x, valid):
        return super().mean(x, valid) + torch.rand(())


class NoGradient(Wrong):
    def mean(self, x, valid):
        return super().mean(x + x.detach(), valid)


class NoGradientOfChunks(Wrong):
    def mean(self, x, valid):
        return super().mean(x + x.detach() if x.shape[1] > 8 else x, valid)


class Largest(Wrong):
    """Right if its entry says that it is differentiable almost everywhere."""

    def mean(self, x, valid):
        return x.cummax(1).values


class CountsQueries(Wrong):
    def forward(self, x, context=None, *, valid=None):
        return x.cumsum(1).flip(1).cumsum(1) * context.mean(1, keepdim=True)


class Broken(Wrong):
    def __init__(self, setting):
        raise RuntimeError("no weights for this one")


class OfTheUser(Wrong):
    """A class without an entry."""

    def __init__(self, width, heads):
        super().__init__(Setting(width, heads))


class OfTheUserAlone(OfTheUser):
    def mean(self, x, valid):
        return x

    def advance(self, x, state):
        return self.map(x), State({"sum": state["sum"]}, state.position + x.shape[1])


class OfFixedLength(nn.Module):
    """Right if its entry says that it has a fixed length."""

    def __init__(self, setting):
        super().__init__()
        self.mix = nn.Linear(setting.length, setting.length)

    def forward(self, x):
        if x.shape[1] != self.mix.in_features:
            raise ValueError(f"made for {self.mix.in_features} tokens, got {x.shape[1]}")
        return self.mix(x.mT).mT


class OfFixedGrid(nn.Module):
    """Means over the rows and over the columns."""

    def __init__(self, setting):
        super().__init__()
        self.grid = setting.fixed_grid

    def forward(self, x):
        if x.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(f"not a grid of {self.grid}")
        x = x.unflatten(1, self.grid)
        return (x.mean(1, keepdim=True) + x.mean(2, keepdim=True) + x.mean((1, 2), keepdim=True)).flatten(
            1, 2
        )
