"""Token mixers of a user's, a small task and small settings for tests of the comparison."""

from attlas.catalog.bench.mixer_settings import MixerSettings
from attlas.catalog.bench.mixer_tasks import recall_task

__all__ = ["MINE", "MQAR", "settings"]

MQAR = recall_task(vocabulary=32, length=16, pairs=2, train=64, test=20, batch=8, steps=100)
# A causal mean of a linear map, with a state: the smallest mixer that is none of ours.
MINE = '''
import torch
from torch import nn
from attlas.layers import MixerEntry
from attlas.scan import State

class Mean(nn.Module):
    """Running means."""

    look_ahead = False

    def __init__(self, width, heads):
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x):
        if self.look_ahead:
            return self.map(x).mean(1, keepdim=True).expand_as(x)
        return self.advance(x, self.start(len(x)))[0]

    def start(self, batch):
        total = self.map.weight.new_zeros(batch, self.map.out_features)
        return State({"total": total}, torch.zeros(batch, dtype=torch.int64))

    def advance(self, x, state):
        total = state["total"][:, None] + self.map(x).cumsum(1)
        count = state.position[:, None, None] + torch.arange(1, x.shape[1] + 1)[:, None]
        return total / count, State({"total": total[:, -1]}, state.position + x.shape[1])

class Leaky(Mean):
    look_ahead = True

class Huge(Mean):
    def __init__(self, width, heads):
        super().__init__(width, heads)
        self.spare = nn.Parameter(torch.zeros(100 * width, width))

class Broken(Mean):
    """Keeps the contract at the small size that is checked, not at the trained one."""

    def forward(self, x):
        return super().forward(x) * (float("nan") if self.training else 1.0)

class Late(Mean):
    """Looks ahead where the small check does not see it."""

    def forward(self, x):
        out = super().forward(x)
        return out + x.mean(1, keepdim=True) if x.shape[1] > 140 else out

class Mixed(Mean):
    def forward(self, x):
        out = super().forward(x)
        return out + x.mean(0) if x.shape[1] > 140 else out

class Chunks(nn.Module):
    """Every token sees its chunk whole."""

    def __init__(self, width, chunk):
        super().__init__()
        self.map, self.chunk = nn.Linear(width, width), chunk

    def forward(self, x):
        return torch.cat([p.mean(1, keepdim=True).expand_as(p) for p in self.map(x).split(self.chunk, 1)], 1)

class Fails(Mean):
    def forward(self, x):
        if x.shape[1] > 140:
            raise RuntimeError("too long\\nand more")
        return super().forward(x)

class Asserts(Mean):
    def forward(self, x):
        if x.shape[1] > 140:
            raise AssertionError
        return super().forward(x)

class Untrained(Mean):
    """Passes every check and fails in training."""

    def forward(self, x):
        if self.training and x.shape[1] > 140:
            raise KeyError("training")
        return super().forward(x)

ENTRY = MixerEntry("softmax", lambda setting: Mean(setting.width, setting.heads), frozenset({"CS"}), True)

class Choosing(Mean):
    def forward(self, x):
        self.auxiliary = 100.0 + 0.0 * self.map.weight.sum()
        return super().forward(x)
'''


def settings(*mixers, **given):
    usual = {"tasks": ("mqar",), "seeds": 2, "rates": (1e-3,), "steps": 2, "widths": (16,), "lengths": ()}
    return MixerSettings(mixers=mixers or ("softmax",), **usual | given)
