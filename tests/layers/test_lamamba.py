"""LaMamba's layers and nets against the formulas of the paper, written out densely."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from attlas.layers.lamamba import (
    SS2D,
    ModulatedBlock,
    ShiftedWindowAttention,
    lamamba_block,
    paths,
)
from attlas.models.lamamba import LaMambaDenoiser, LaMambaUNet, PatchExpanding, PatchMerging, guided
from attlas.train.diffusion import Diffusion, NoisyBatch


def shaken(module: torch.nn.Module, by: float = 0.1) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += by * torch.randn_like(parameter)
    return module.double()


def test_the_four_paths_of_a_square():
    first, second, third, fourth = (order.index.tolist() for order in paths(4, 4))
    assert first[:9] == [0, 1, 2, 3, 7, 6, 5, 4, 8] and third[:5] == [12, 8, 4, 0, 1]
    assert second == first[::-1] and fourth == third[::-1]


@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 4), (5, 2)])
def test_paths_are_serpentines_that_invert(height, width):
    tokens = torch.arange(height * width)[:, None]
    for order in paths(height, width):
        assert torch.equal(order.inverse(order.permute(tokens)), tokens)
        assert all(
            abs(one // width - two // width) + abs(one % width - two % width) == 1
            for one, two in pairwise(order.index.tolist())
        )


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5)])
def test_ss2d_is_its_formula(height, width):
    layer = shaken(SS2D(6, states=2))
    x = torch.randn(2, height, width, 6, dtype=torch.float64)
    u, z = (x @ layer.into.weight.mT).chunk(2, -1)
    filters = layer.conv.weight[:, 0]
    around = functional.pad(u, (0, 0, 1, 1, 1, 1))
    u = sum(filters[:, i, j] * around[:, i : i + height, j : j + width] for i in range(3) for j in range(3))
    u = functional.silu(u)
    summed = torch.zeros_like(u)
    for order, scan in zip(paths(height, width), layer.scans, strict=True):
        hidden = torch.zeros(2, 12, 2, dtype=torch.float64)
        for place in order.index.tolist():
            token = u[:, place // width, place % width]
            rank, write, read = (token @ scan.steer.weight.mT).split([1, 2, 2], -1)
            delta = functional.softplus(rank @ scan.step.weight.mT + scan.step.bias)
            decay = torch.exp(-delta[..., None] * scan.log_rate.exp())
            hidden = decay * hidden + (delta * token)[..., None] * write[:, None]
            summed[:, place // width, place % width] += (hidden @ read[..., None])[..., 0] + scan.skip * token
    wanted = (layer.norm(summed) * functional.silu(z)) @ layer.out.weight.mT
    torch.testing.assert_close(layer(x), wanted, rtol=1e-10, atol=1e-10)


def dense_windows(layer: ShiftedWindowAttention, x: Tensor, sides: tuple, shifts: tuple) -> Tensor:
    """Every pair of the whole map, hidden where its tokens lie in different windows of the shifted tiling."""
    height, width = x.shape[1:3]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    # A window of the rolled map holds places before and after the seam, which see each other not.
    label = torch.stack([
        (at - shift).div(side, rounding_mode="floor")
        for at, side, shift in ((rows, sides[0], shifts[0]), (columns, sides[1], shifts[1]))
    ], 1)  # fmt: skip
    seen = (label[:, None] == label).all(-1)
    query, key, value = (
        part.flatten(1, 2).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for part in layer.project(x).chunk(3, -1)
    )
    down = (rows[None] - rows[:, None]).clamp(1 - layer.window, layer.window - 1) + layer.window - 1
    across = (columns[None] - columns[:, None]).clamp(1 - layer.window, layer.window - 1) + layer.window - 1
    logits = query @ key.mT / query.shape[-1] ** 0.5 + layer.bias.table[:, down, across]
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return layer.out((weights @ value).transpose(1, 2).flatten(2)).unflatten(1, (height, width))


@pytest.mark.parametrize(
    ("height", "width", "shift", "sides", "shifts"),
    [
        (8, 8, 0, (4, 4), (0, 0)),
        (8, 8, 2, (4, 4), (2, 2)),
        (12, 8, 1, (4, 4), (1, 1)),
        (7, 9, 0, (4, 4), (0, 0)),
        (7, 9, 2, (4, 4), (2, 2)),
        (4, 3, 2, (4, 3), (0, 0)),
        (3, 9, 2, (3, 4), (0, 2)),
    ],
)
def test_windows_equal_a_dense_mask(height, width, shift, sides, shifts):
    layer = shaken(ShiftedWindowAttention(6, heads=2, window=4, shift=shift), 0.5)
    x = torch.randn(2, height, width, 6, dtype=torch.float64, requires_grad=True)
    got, wanted = layer(x), dense_windows(layer, x, sides, shifts)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    leaves = [x, *layer.parameters()]
    for one, other in zip(
        torch.autograd.grad(got.sin().sum(), leaves),
        torch.autograd.grad(wanted.sin().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_a_block_begins_as_the_identity_and_is_its_formula():
    block, x, c = (
        lamamba_block(8, 12, heads=2, window=4, shift=2),
        torch.randn(1, 8, 5, 8),
        torch.randn(1, 12),
    )
    assert torch.equal(block(x, c), x)
    block, x, c = shaken(block), x.double(), c.double()
    numbers = functional.silu(c @ block.project.weight.mT + block.project.bias) @ block.modulation.weight.mT
    numbers = (numbers + block.modulation.bias).view(9, 8)
    wanted = x
    for k, (norm, part) in enumerate(zip(block.norms, block.parts, strict=True)):
        shift, scale, gate = numbers[3 * k : 3 * k + 3]
        wanted = wanted + gate * part(norm(wanted) * (1 + scale) + shift)
    torch.testing.assert_close(block(x, c), wanted)
    assert [type(part).__name__ for part in block.parts] == ["SS2D", "ShiftedWindowAttention", "Sequential"]
    assert isinstance(ModulatedBlock(8, 8, [torch.nn.Identity()], project=False).project, torch.nn.Identity)


def test_merging_and_expanding():
    x = torch.arange(2 * 3 * 4, dtype=torch.float64).view(1, 2, 3, 4)
    merge = PatchMerging(4, 5).double()
    got = merge(x)
    corner = torch.cat([x[0, 0, 2], x[0, 1, 2], torch.zeros(8)])
    torch.testing.assert_close(got[0, 0, 1], merge.reduce(merge.norm(corner)))
    expand = PatchExpanding(4).double()
    got = expand(x)
    assert got.shape == (1, 4, 6, 2)
    wide = x[0, 1, 2] @ expand.expand.weight.mT
    torch.testing.assert_close(got[0, 2:, 4:].flatten(0, 1), expand.norm(wide.view(4, 2)))


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_the_u_net_takes_any_sides(size):
    net = LaMambaUNet(
        channels=2, size=size, width=4, depths=(1, 1, 1, 1), middle=1, heads=2, window=4, classes=3
    )
    x, t, label = torch.randn(2, 2, *size), torch.tensor([0, 999]), torch.tensor([1, 3])
    out = net(x, t, label)
    assert out.shape == (2, 4, *size)
    assert [len(stage) for stage in net.up] == [2, 2, 2, 2]
    # With all blocks the identity only the resampling and the head are left: no condition is heard.
    torch.testing.assert_close(out, net(x, t.flip(0), label.flip(0)))
    out.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    with pytest.raises(ValueError, match="x must be .* as its table of places, got 9 x 9"):
        net(torch.randn(1, 2, 9, 9), t[:1], label[:1])


def test_scans_keep_their_own_start():
    net = LaMambaDenoiser(size=4, width=16)
    steps = functional.softplus(net.blocks[0].parts[0].scans[0].step.bias.detach())
    assert float(steps.min()) > 9e-4 and float(steps.max()) < 0.11


def test_guidance_is_in_all_channels():
    def model(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.cat([x * label[:, None, None, None], x + label[:, None, None, None]], 1)

    x, label = torch.randn(2, 3, 4, 4), torch.tensor([1, 2])
    got = guided(model, x, torch.zeros(2, dtype=torch.int64), label, 3.0, classes=5)
    torch.testing.assert_close(got[:, :3], x * (5 + 3.0 * (label - 5))[:, None, None, None])
    torch.testing.assert_close(got[:, 3:], x + label[:, None, None, None])


class _Fixed(torch.nn.Module):
    """Predicts the noise that it is given, and a variance logit."""

    def __init__(self, noise: Tensor, v: float) -> None:
        super().__init__()
        self.noise = torch.nn.Parameter(noise)
        self.v = torch.nn.Parameter(torch.full_like(noise, v))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.cat([self.noise, self.v], 1)


def test_the_objective_of_diffusion():
    diffusion = Diffusion()
    clean = torch.rand(3, 1, 4, 4, dtype=torch.float64) * 1.6 - 0.8
    t, noise = torch.tensor([1, 500, 999]), torch.randn_like(clean)
    batch = NoisyBatch(clean, t, noise, torch.zeros(3, dtype=torch.int64))
    kept = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0)
    at = kept[t].sqrt().view(-1, 1, 1, 1) * clean + (1 - kept[t]).sqrt().view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(diffusion.noisy(batch), at)
    # The right noise and the posterior's own variance: nothing is left to learn.
    exact = _Fixed(noise.clone(), -1.0)
    torch.testing.assert_close(
        diffusion.loss(exact, batch), torch.zeros((), dtype=torch.float64), atol=1e-9, rtol=0
    )
    # A wrong noise: the Kullback-Leibler divergence of two Gaussians, by torch.
    wrong = _Fixed(noise + 0.3, 0.2)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for b, step in enumerate(t.tolist()):
        before = kept[step - 1]
        least = beta[step] * (1 - before) / (1 - kept[step])

        def mean(start: Tensor, b: int = b, step: int = step, before: Tensor = before) -> Tensor:
            share = before.sqrt() * beta[step] / (1 - kept[step])
            return share * start + (1 - beta[step]).sqrt() * (1 - before) / (1 - kept[step]) * at[b]

        guess = (at[b] - (1 - kept[step]).sqrt() * (noise[b] + 0.3)) / kept[step].sqrt()
        spread = torch.exp(0.5 * (0.6 * beta[step].log() + 0.4 * least.log()))
        normal = torch.distributions.Normal
        total += torch.distributions.kl_divergence(
            normal(mean(clean[b]), least.sqrt()), normal(mean(guess), spread)
        ).mean()
    loss = diffusion.loss(wrong, batch)
    torch.testing.assert_close(loss, 0.09 + total / 3 / torch.log(torch.tensor(2.0)))
    # The variational term trains variances only.
    of_noise = torch.autograd.grad(loss, wrong.noise)[0]
    torch.testing.assert_close(of_noise, 2 * 0.3 / noise.numel() * torch.ones_like(noise))


def test_the_first_step_is_the_likelihood_of_levels():
    diffusion = Diffusion()
    clean = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).view(1, 1, 1, 3)
    batch = NoisyBatch(clean, torch.tensor([0]), torch.zeros_like(clean), torch.tensor([0]))
    exact = _Fixed(torch.zeros_like(clean), 1.0)
    # At the first step abar = 1 - beta: the mean is the image itself, its deviation 0.01.
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    half = normal.cdf(torch.tensor(1 / 255 / 0.01, dtype=torch.float64))
    bits = -(2 * torch.log2(half) + torch.log2(2 * half - 1)) / 3
    torch.testing.assert_close(diffusion.loss(exact, batch), bits)


def test_sampling_undoes_known_noise_and_batches_repeat():
    diffusion = Diffusion(steps=20)
    target = torch.rand(2, 1, 3, 3) - 0.5

    def model(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        kept = diffusion.kept[t].float()[:, None, None, None]
        return torch.cat([(x - kept.sqrt() * target) / (1 - kept).sqrt(), -torch.ones_like(x)], 1)

    made = diffusion.sample(model, torch.zeros(2, dtype=torch.int64), (1, 3, 3), torch.Generator())
    torch.testing.assert_close(made, target, atol=1e-4, rtol=1e-4)
    data = [(torch.zeros(400, 1, 2, 2), torch.zeros(400, dtype=torch.int64))]
    one, two = (next(diffusion.batches(iter(data), 3, classes=7)) for _ in range(2))
    assert torch.equal(one.noise, two.noise) and set(one.label.tolist()) == {0, 7}
    assert 0.05 < float((one.label == 7).float().mean()) < 0.16
    assert int(one.t.min()) >= 0 and int(one.t.max()) < 20


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="shift must be at least 0 and below window, got 4 and 4"):
        ShiftedWindowAttention(4, heads=2, window=4, shift=4)
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 5 and 2 heads"):
        ShiftedWindowAttention(5, heads=2, window=4)
    with pytest.raises(ValueError, match=r"depths must name 4 stages, got \(2, 2\)"):
        LaMambaUNet(depths=(2, 2), width=8)
    with pytest.raises(ValueError, match="width must be a multiple of 4 for sin-cos places, got 6"):
        LaMambaDenoiser(width=6)
