"""The comparison of token mixers at tiny settings: budgets by hand, resuming, mixers of the user's own."""

import json
import statistics

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.catalog.bench import mixers as bench_module
from attlas.catalog.bench.mixer_nets import Fitted, Size, answers, fitted, make_net, training_loss
from attlas.catalog.bench.mixer_settings import MixerSettings
from attlas.catalog.bench.mixer_speed import efficiency, speed_at
from attlas.catalog.bench.mixer_tasks import TASKS, text_task
from attlas.catalog.bench.mixer_training import best_rate, net_values, row_of
from attlas.catalog.bench.mixers import bench_mixers
from attlas.catalog.bench.parts import Parts
from attlas.layers import mixer_entry
from catalog.of_mine import MQAR, settings
from skips import needs

SIZE = Size(16, 2)


def test_the_reference_is_its_own_budget():
    plan = fitted(MQAR, mixer_entry("softmax"), SIZE)
    net = make_net(MQAR, mixer_entry("softmax"), SIZE, plan.inner)
    assert plan.inner == 64 and plan.steps == 100 and plan.flops_budget == 100 * plan.flops
    assert plan.parameters == plan.budget == sum(weight.numel() for weight in net.blocks.parameters())
    # Keys and values of 16 tokens, and the two inputs that the short convolution keeps, in float32.
    assert plan.state_bytes == 4 * (2 * 16 * 16 + 2 * 16) and plan.uncounted == ()


def test_budgets_are_kept(mine):
    """A mixer with a quarter of the projections gets a wider MLP, and more or fewer steps by its FLOPs."""
    for name in ("window", f"{mine}:Mean"):
        plan = fitted(MQAR, mixer_entry(name), SIZE, steps=400)
        assert abs(plan.parameters / plan.budget - 1) <= 0.02
        assert abs(plan.flops * plan.steps / plan.flops_budget - 1) <= 0.02
    assert plan.inner > 64 and plan.state_bytes == 4 * (16 + 2 * 16)


def test_a_mixer_beyond_the_budget_is_told(mine):
    with pytest.raises(
        ValueError, match=r"mixer .*:Huge has .* parameters .* width 16 .* no width of the MLP"
    ):
        fitted(MQAR, mixer_entry(f"{mine}:Huge"), SIZE)


@pytest.mark.parametrize("name", ["agent", "gpsa", "metamixer", "ninformer"])
def test_pixels_are_a_grid_for_mixers_that_need_one(name):
    net = make_net(TASKS["digits"], mixer_entry(name), SIZE, 8)
    assert net(torch.randint(0, 17, (2, 64))).shape == (2, 10)
    with pytest.raises(ValueError, match=f"mixer {name} has no CS form"):
        make_net(MQAR, mixer_entry(name), SIZE, 8)


def test_only_what_is_asked_for_is_answered():
    net = make_net(MQAR, mixer_entry("softmax"), SIZE, 8)
    ids, labels = (part[:3] for part in MQAR.data(0, False).held_out)
    output, wanted = answers(net, (ids, labels))
    asked = labels != -100
    assert output.shape == (3 * 2, 32) and torch.equal(wanted, labels[asked])
    assert torch.allclose(output, net(ids)[asked], rtol=1e-5, atol=1e-6)


def test_networks_are_repeatable_and_told_what_they_spent():
    entry = mixer_entry("softmax")
    plan = fitted(MQAR, entry, SIZE, steps=5)
    first, again, other = (net_values(MQAR, entry, SIZE, plan, rate=1e-3, seed=seed) for seed in (0, 0, 1))
    assert first == again and first["loss"] != other["loss"] and 0 <= first["score"] <= 1
    assert [at for at, _ in first["curve"]] == [plan.flops * 8 * step for step in range(1, 6)]
    assert net_values(MQAR, entry, SIZE, plan, rate=1e-3, seed=0, tuning=True)["loss"] != first["loss"]


def test_what_a_mixer_adds_to_the_loss_is_trained_and_not_judged(mine):
    entry = mixer_entry(f"{mine}:Choosing")
    plan = fitted(MQAR, entry, SIZE, steps=2)
    found = net_values(MQAR, entry, SIZE, plan, rate=1e-3, seed=0)
    assert min(loss for _, loss in found["curve"]) > 100 and found["loss"] < 10


def test_a_network_that_diverges_is_a_result(mine):
    entry = mixer_entry(f"{mine}:Broken")
    plan = fitted(MQAR, entry, SIZE, steps=2)
    found = net_values(MQAR, entry, SIZE, plan, rate=1e-3, seed=0)
    assert found["diverged"] == "the loss of step 1 is nan: training went wrong"
    assert best_rate(MQAR, [found]) is None


def test_the_best_rate_is_by_score_then_by_loss():
    runs = [
        {"rate": 0.1, "score": 0.5, "loss": 1.0},
        {"rate": 0.2, "score": 0.5, "loss": 0.9},
        {"rate": 0.3, "diverged": "x"},
    ]
    assert best_rate(MQAR, runs) == 0.2
    assert best_rate(text_task(), [{**runs[0], "score": 0.4}, runs[1]]) == 0.1  # bits: fewer are better


def test_a_row_is_the_mean_of_the_seeds_that_finished():
    plan = Fitted(4, 100, 100, 10, 5, 50, (), None)
    runs = [{"seed": 0, "score": 0.2}, {"seed": 1, "diverged": "x"}, {"seed": 2, "score": 0.4}]
    row = row_of(mixer_entry("softmax"), SIZE, plan, [{"rate": 1.0, "score": 0.1, "curve": []}], runs)
    assert row["mean"] == pytest.approx(0.3) and row["sd"] == pytest.approx(statistics.stdev([0.2, 0.4]))
    assert row["diverged"] == 1 and "curve" not in row["sweep"][0]
    lone = row_of(mixer_entry("softmax"), SIZE, plan, [], runs[:2])
    assert (lone["mean"], lone["sd"]) == (0.2, None)


def test_the_result_holds_every_task_mixer_and_width(tiny, mine, tmp_path):
    asked = settings(
        "softmax", f"{mine}:Mean", tasks=("mqar", "digits"), widths=(8, 16), seeds=1, lengths=(16, 24, 32, 40)
    )
    result = bench_mixers(asked, out=tmp_path, command=asked.command())
    assert json.loads((tmp_path / "mixers.json").read_text()) == json.loads(json.dumps(result))
    assert (result["schema"], result["version"]) == ("attlas.mixers", 1)
    recall, digits = result["tasks"]
    assert [(row["mixer"], row["width"]) for row in recall["rows"]] == [
        (name, width) for width in (8, 16) for name in asked.mixers
    ]
    assert all(len(row["runs"]) == len(row["sweep"]) == 1 and row["rate"] == 1e-3 for row in recall["rows"])
    # A class of the user's is causal; seeing all pixels at once is another form.
    assert digits["form"] == "NS" and digits["rows"][0]["mean"] >= 0
    assert "has no NS form, only CS (a class without an entry" in digits["rows"][1]["absent"]
    speed = result["speed"]
    softmax, mean = speed["rows"]
    assert (
        softmax["state_bytes"] == [4 * 2 * n * 256 for n in (16, 24, 32, 40)]
        and mean["state_bytes"] == [1024] * 4
    )
    assert all(
        value > 0 for name in ("forward_ms", "train_ms", "train_bytes", "decode_us") for value in mean[name]
    )
    assert set(speed["efficiency"]) == {f"{mine}:Mean"}
    assert not list(tmp_path.glob("*.partial"))


def test_an_interrupted_comparison_goes_on_also_with_more(tiny, tmp_path, monkeypatch):
    asked = []

    def counted(task, entry, size, plan, **given):
        asked.append((entry.name, given["seed"]))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return net_values(task, entry, size, plan, **given)

    monkeypatch.setattr(bench_module, "net_values", counted)
    with pytest.raises(KeyboardInterrupt):
        bench_mixers(settings(), out=tmp_path)
    assert asked == [("softmax", 1000), ("softmax", 0), ("softmax", 1)]
    bench_mixers(settings("softmax", "window"), out=tmp_path)
    assert asked[3:] == [("softmax", 1), ("window", 1000), ("window", 0), ("window", 1)]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("damage", ["", "{", '{"schema": "other"}', '{"schema": "some.part", "version": 1}'])
def test_a_damaged_part_is_made_anew(tmp_path, damage):
    kept = Parts(tmp_path, "some", 1)
    assert kept.keep("one", lambda: (1, 2)) == [1, 2]
    assert kept.keep("one", lambda: pytest.fail("it is there")) == [1, 2]
    (tmp_path / "one.json").write_text(damage)
    assert kept.keep("one", lambda: {"made": "anew"}) == {"made": "anew"}
    assert kept.keep("one", lambda: pytest.fail("it is there")) == {"made": "anew"}


def test_speed_tells_why_a_mixer_is_not_there(mine):
    found = speed_at([mixer_entry("softmax"), mixer_entry(f"{mine}:Mean")], Size(6, 4), 8, times=1)
    assert found["softmax"]["absent"].startswith("width must be a multiple of heads")
    assert found[f"{mine}:Mean"]["forward_ms"] > 0


def test_a_mixer_made_for_a_length_is_timed_with_one_token_more():
    (row,) = speed_at([mixer_entry("base_conv_long")], Size(8, 2), 6, times=1).values()
    assert row["decode_us"] > 0 and row["state_bytes"] > 0


def test_efficiency_is_of_the_lengths_that_both_have():
    lengths = (100, 200, 300, 400)
    dense = [n * n + 10 for n in lengths]
    row = {"mixer": "x", "forward_ms": [999, *(250 * n + 10 for n in lengths[1:])]}
    row |= {"train_ms": [1, 2, None, None], "train_bytes": [50 * n + 10 for n in lengths]}
    softmax = {"mixer": "softmax", **dict.fromkeys(("forward_ms", "train_ms", "train_bytes"), dense)}
    found = efficiency([softmax, row], lengths)["x"]
    assert found["forward_ms"]["length"] == pytest.approx(
        250
    )  # the time of 100 tokens is left out of the line
    assert found["train_ms"] == {"absent": "a fit needs 4 lengths, there are 2"}
    assert found["train_bytes"]["length"] == pytest.approx(50)
    bare = softmax | {"mixer": "bare", "forward_ms": [1, 2, 3, 4], "train_bytes": [1, 2, 3, 4]}
    told = efficiency([softmax, bare | {"train_ms": [10 * cost for cost in dense]}], lengths)["bare"]
    assert told["forward_ms"]["cheaper"] == "always" and "length" not in told["forward_ms"]
    assert told["train_ms"]["cheaper"] == "never"
    assert efficiency([row], lengths) == {}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs("statsmodels")) if name == "series" else name for name in TASKS],
)
def test_every_task_trains_the_reference(name, tmp_path):
    """One step at the tasks' own sizes; held-out data of tuning is other data than that of the test."""
    task, entry = TASKS[name], mixer_entry("softmax")
    net = make_net(task, entry, Size(8, 2), 8)
    split = task.data(0, False)
    inputs, labels = next(split.batches)
    assert len(inputs) == task.batch and inputs.shape[1] == task.length
    loss = training_loss(task, net, (inputs, labels))
    loss.backward()
    assert torch.isfinite(loss) and all(weight.grad is not None for weight in net.parameters())
    judged, other = split.held_out, task.data(0, True).held_out
    assert judged[0].shape[1:] == inputs.shape[1:] and not torch.equal(judged[0][:10], other[0][:10])
    few = tuple(part[:20] for part in judged)
    assert torch.isfinite(task.objective.score(*answers(net, few)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tasks": ("chess",)}, "task must be one of mqar, .*, got 'chess'"),
        ({"mixers": ("softmax", "softmax")}, "mixers must differ, got softmax, softmax"),
        ({"rates": ()}, "give at least one of rates"),
        ({"rates": (2.0,)}, "rates are learning rates between 0 and 1, got 2"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"widths": (63,)}, "widths must be multiples of the 2 heads, got 63"),
        (
            {"lengths": (64, 128, 256)},
            "lengths must be at least 4, through fewer any curve goes, or none .*; got 64,128,256",
        ),
        ({"lengths": (64, 32)}, "lengths must be at least 1 and ascend, got 64,32"),
    ],
)
def test_settings_that_cannot_work(given, said):
    with pytest.raises(UsageError, match=said):
        MixerSettings(**given)


def test_the_command_says_what_is_not_as_by_default():
    assert MixerSettings().command() == "attlas bench mixers"
    asked = MixerSettings(
        mixers=("softmax", "mine:Mixer"), rates=(0.01,), widths=(16, 32), lengths=(), steps=7
    )
    assert asked.command() == (
        "attlas bench mixers --mixer softmax --mixer mine:Mixer --rates 0.01 --steps 7 --widths 16,32 "
        "--lengths ''"
    )
