"""Every registered mixer joins the comparison by its name: budgets and one step of training."""

import math

import pytest

from attlas.catalog.bench.mixer_nets import Size, fitted
from attlas.catalog.bench.mixer_tasks import digits_task
from attlas.catalog.bench.mixer_training import net_values
from attlas.layers import MIXERS
from catalog.of_mine import MQAR

SMALL, USUAL = Size(16, 2), Size(64, 2)
DIGITS = digits_task("digits", causal=False, train=40, test=8, batch=4, steps=1)


@pytest.mark.parametrize("name", [name for name, entry in MIXERS.items() if entry.forms & {"NS", "CS"}])
def test_it_trains_beside_the_reference(name):
    """On recall where it is causal, else on digits, whose tokens stand on a grid."""
    entry = MIXERS[name]
    task = MQAR if "CS" in entry.forms else DIGITS
    # Weights per position, or per agent on a grid, are beyond the budget of narrow networks.
    size = USUAL if entry.tokens == "length" or task is DIGITS else SMALL
    plan = fitted(task, entry, size, steps=1)
    assert abs(plan.parameters / plan.budget - 1) <= 0.02 and plan.flops > 0
    assert (plan.state_bytes is not None) == (entry.stateful and task.causal)
    found = net_values(task, entry, size, plan, rate=1e-3, seed=0)
    assert math.isfinite(found["loss"]) and 0 <= found["score"] <= 1
