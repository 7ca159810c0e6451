"""Agent attention against the official formulas with two dense softmaxes, and its form without training."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attend.memory import allocations
from attlas.attend import via
from attlas.layers import AgentAttention, AgentSD, SelfAttention, Setting, mixer_entry
from attlas.layers.agent import AgentBias, pooled_agents
from attlas.layers.agent_sd import agent_attention, merge_tokens

CLOSE = {"atol": 1e-10, "rtol": 1e-9}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


def shaken(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def table(bias: AgentBias, grid: tuple[int, int]) -> Tensor:
    """Bilinear resizing by hand, then row and column, then the class token in front."""

    def weights(size: int, base: int) -> Tensor:
        at = ((torch.arange(size) + 0.5) * base / size - 0.5).clamp(0, base - 1)
        low = at.floor().long().clamp_max(max(base - 2, 0))
        share = at - low
        matrix = torch.zeros(size, base)
        matrix[torch.arange(size), low] += 1 - share
        matrix[torch.arange(size), low + 1] += share
        return matrix

    down, across = weights(grid[0], 7), weights(grid[1], 7)
    whole = torch.einsum("yi,haij,xj->hayx", down, bias.base, across) + bias.rows + bias.columns
    whole = whole.flatten(2)
    return whole if bias.class_token is None else torch.cat([bias.class_token, whole], 2)


def dense(module: AgentAttention, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(out, weights (B, H, N, M)) as the official code writes it."""
    b, n, c = x.shape
    front, (h, w), r = module.front, grid, module.reduced
    source = x
    if r > 1:
        image = x.transpose(1, 2).reshape(b, c, h, w)
        source = module.norm(module.reduction(image).reshape(b, c, -1).transpose(1, 2))
    q, k, v = module.query(x), module.key(source), module.value(source)
    boxes = q[:, front:].reshape(b, h, w, c).permute(0, 3, 1, 2)
    side_y, side_x = module.pool
    means = []
    for i in range(side_y):
        for j in range(side_x):
            rows = slice(i * h // side_y, -(-(i + 1) * h // side_y))
            columns = slice(j * w // side_x, -(-(j + 1) * w // side_x))
            means.append(boxes[:, :, rows, columns].mean((2, 3)))
    agents = torch.stack(means, 1)
    qh, ah, kh, vh = (t.reshape(b, t.shape[1], module.heads, -1).transpose(1, 2) for t in (q, agents, k, v))
    scale = qh.shape[-1] ** -0.5
    first, second = (ah * scale) @ kh.mT, (qh * scale) @ ah.mT
    if module.gather is not None:
        first = first + table(module.gather, (h // r, w // r))
        second = second + table(module.hand_out, grid).mT
    weights = second.softmax(-1) @ first.softmax(-1)
    out = (weights @ vh).transpose(1, 2).reshape(b, n, c)
    if module.convolution is not None:
        image = v[:, front:].transpose(1, 2).reshape(b, c, h // r, w // r)
        if r > 1:
            image = functional.interpolate(image, size=(h, w), mode="bilinear")
        local = module.convolution(image).permute(0, 2, 3, 1).reshape(b, h * w, c)
        out = torch.cat([out[:, :front], out[:, front:] + local], 1)
    return module.out(out), weights


VARIANTS = {
    "plain": {"grid": (6, 7)},
    "class token": {"grid": (5, 6), "class_token": True, "bias": True},
    "reduced": {"grid": (6, 8), "reduced": 2},
    "without biases": {"grid": (4, 4), "biases": False, "pool": (2, 2)},
    "without convolution": {"grid": (9, 3), "convolution": False},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_two_dense_softmaxes_in_value_and_gradient(name):
    options = VARIANTS[name]
    module = shaken(AgentAttention(8, 2, **options))
    grid = options["grid"]
    x = torch.randn(2, grid[0] * grid[1] + module.front, 8, requires_grad=True)
    got, (wanted, _) = module(x), dense(module, x, grid)
    torch.testing.assert_close(got, wanted, **CLOSE)
    leaves = [x, *module.parameters()]
    for one, other in zip(
        torch.autograd.grad(got.sin().sum(), leaves),
        torch.autograd.grad(wanted.sin().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **CLOSE)


def test_a_sequence_is_pooled_along_its_length():
    module = shaken(mixer_entry("agent").build(Setting(8, 2, causal=False)))
    for count in (9, 23):
        x = torch.randn(2, count, 8)
        torch.testing.assert_close(module(x), dense(module, x, (1, count))[0], **CLOSE)


def test_rank_is_at_most_the_number_of_agents_and_rows_sum_to_one():
    module = shaken(AgentAttention(16, 2, grid=(8, 8), convolution=False))
    _, weights = dense(module, torch.randn(1, 64, 16), (8, 8))
    assert (torch.linalg.matrix_rank(weights) <= 9).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 64))


def test_agents_are_means_of_boxes():
    query = torch.arange(16.0).view(1, 16, 1)
    agents = pooled_agents(query, (4, 4), (2, 2))
    assert agents.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_every_output_sees_the_whole_sequence():
    module = AgentAttention(8, 2, grid=(4, 4), pool=(2, 2))
    x = torch.randn(1, 16, 8, requires_grad=True)
    seen = torch.autograd.grad(module(x)[0, 0].sum(), x)[0].abs().sum(-1)
    assert (seen > 0).all(), "no causal form: the first token sees the last"
    with pytest.raises(ValueError, match="mixer agent has no CS form, only NS .agents are means over all"):
        mixer_entry("agent").build(Setting(8, 2))


def test_nothing_is_tokens_by_tokens():
    module = AgentAttention(8, 2, grid=(40, 40))
    x = torch.randn(1, 1600, 8, requires_grad=True)
    found = allocations(lambda: module(x).sum().backward())
    assert found.largest <= 1600 * 9 * 2 * 2


def test_the_second_hop_may_have_a_score_of_its_own():
    query, agents = torch.randn(2, 3, 11, 4), torch.randn(2, 3, 5, 4)
    key, value = torch.randn(2, 3, 11, 4), torch.randn(2, 3, 11, 6)
    found = agent_attention(query, agents, key, value)
    gathered = (agents @ key.mT / 4**0.5).softmax(-1) @ value
    expected = (query @ agents.mT * (4**-0.5) ** 0.3).softmax(-1) @ gathered + 0.075 * value
    torch.testing.assert_close(found, expected, **CLOSE)
    few = agent_attention(query, torch.cat([agents, agents], 2), key, value)
    torch.testing.assert_close(few, (query @ key.mT / 2).softmax(-1) @ value, **CLOSE)
    torch.testing.assert_close(via(query, agents, key, value, onward=None), via(query, agents, key, value))


def merged_by_hand(x: Tensor, grid: tuple[int, int], merged: int) -> Tensor:
    """One image, token by token."""
    kept = [r * grid[1] + c for r in range(0, grid[0] // 2 * 2, 2) for c in range(0, grid[1] // 2 * 2, 2)]
    others = [t for t in range(len(x)) if t not in kept]
    best = {t: max((functional.cosine_similarity(x[t], x[k], 0).item(), k) for k in kept) for t in others}
    order = sorted(others, key=lambda t: -best[t][0])
    groups = {k: [x[k]] for k in kept}
    for t in order[:merged]:
        groups[best[t][1]].append(x[t])
    alone = [x[t] for t in order[merged:]]
    return torch.stack(alone + [torch.stack(groups[k]).mean(0) for k in kept])


@pytest.mark.parametrize(("grid", "merged"), [((4, 6), 10), ((5, 5), 15), ((4, 4), 99)])
def test_merging_is_that_of_single_tokens(grid, merged):
    x = torch.randn(2, grid[0] * grid[1], 3)
    expected = torch.stack([merged_by_hand(one, grid, merged) for one in x])
    torch.testing.assert_close(merge_tokens(x, grid, merged), expected, **CLOSE)


def test_a_trained_attention_goes_through_agents_without_new_parameters():
    inner = SelfAttention(8, 2)
    module = AgentSD(inner, (6, 6))
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in inner.parameters())
    x = torch.randn(2, 36, 8)
    agents = merge_tokens(x, (6, 6), 28)
    assert agents.shape[1] == 9, "three quarters are merged at most"

    def split(made: Tensor) -> Tensor:
        return made.unflatten(-1, (2, -1)).transpose(1, 2)

    query, middle, key, value = map(
        split, (inner.query(x), inner.query(agents), inner.key(x), inner.value(x))
    )
    expected = inner.out(agent_attention(query, middle, key, value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x), expected, **CLOSE)
    few = AgentSD(inner, (6, 6), merged=0.3)
    torch.testing.assert_close(few(x), inner(x), **CLOSE)


def test_errors():
    with pytest.raises(
        ValueError, match="made for a grid of 4 x 4 tokens and the class token, got 16 tokens"
    ):
        AgentAttention(8, 2, grid=(4, 4), class_token=True)(torch.zeros(1, 16, 8))
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 8 and 3"):
        AgentAttention(8, 3)
    with pytest.raises(ValueError, match="reduced keys need a grid and no class token"):
        AgentAttention(8, 2, reduced=2)
    with pytest.raises(ValueError, match="reduced 3 must divide the grid of 4 x 6 tokens"):
        AgentAttention(8, 2, grid=(4, 6), reduced=3)
    with pytest.raises(ValueError, match=r"pool and reduced must be at least 1, got \(0, 3\) and 1"):
        AgentAttention(8, 2, pool=(0, 3))
    with pytest.raises(ValueError, match="a grid of 2 x 3 needs 6 tokens, got 5"):
        merge_tokens(torch.zeros(1, 5, 2), (2, 3), 1)
    with pytest.raises(ValueError, match="stride must be at least 2 and fit in the grid of 2 x 3, got 4"):
        merge_tokens(torch.zeros(1, 6, 2), (2, 3), 1, stride=4)
    with pytest.raises(ValueError, match="AgentSD replaces plain attention"):
        AgentSD(SelfAttention(8, 2, base=10.0), (4, 4))
    with pytest.raises(ValueError, match="merged is a share of the tokens between 0 and 1, got 1.0"):
        AgentSD(SelfAttention(8, 2), (4, 4), merged=1.0)
