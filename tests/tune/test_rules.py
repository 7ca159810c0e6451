"""Rule grid, sizes, and the influence that a rule misses, against masks of single pairs."""

import numpy as np
import pytest
import torch
from torch import Tensor

from attlas.pattern import ModelShape, Plan, Tokens
from attlas.tune.rules import Rule, RuleSet, rule_grid


@pytest.mark.parametrize(
    "lengths, extend, step, count",
    [
        ((2048, 4096, 8192), 16384, None, 48),  # the paper's defaults
        ((1024, 2048), 4096, None, 28),
        ((1024, 2048), 4096, 512, 28),
        ((1024, 2048), 4096, 1024, 14),
    ],
)
def test_the_grid_has_the_known_number_of_rules(
    lengths: tuple[int, ...], extend: int, step: int | None, count: int
) -> None:
    grid = rule_grid(lengths, extend, alpha_step=step)
    assert len(grid) == count == len(set(grid.rules))
    for rule in grid.rules:
        assert rule.alpha + rule.beta * lengths[0] > 0
        assert all(rule.alpha + rule.beta * length <= length for length in (lengths[-1], extend))
    assert max(grid.sizes(extend)) == extend


def test_rules_that_differ_at_no_length_are_one_rule() -> None:
    grid = rule_grid((512,))
    sizes = grid.sizes(512).tolist()
    assert (
        len(set(sizes)) == len(sizes) and Rule(0.0, 0.5) in grid.rules and Rule(256.0, 0.0) not in grid.rules
    )


@pytest.mark.parametrize("length", [64, 128, 256, 1024, 2048, 4096])
def test_sizes_and_densities_are_those_of_the_deployed_plan(length: int) -> None:
    grid = rule_grid((1024, 2048), 4096)
    shape = ModelShape("m", "f", len(grid), 1, 1, 8)
    plan = Plan(shape, tuple((grid.pattern(index),) for index in range(len(grid))))
    for index, (size, density) in enumerate(
        zip(grid.sizes(length), grid.deployed_density(length), strict=True)
    ):
        rule = grid.rules[index]
        span = max(min(int(rule.alpha + rule.beta * length), length), 128)
        assert size == 64 * -(-span // 64) == plan.sizes(index, length)[0]
        assert density == pytest.approx(plan.layer_density(index, length), abs=1e-12)


def test_an_encoder_rule_costs_its_share_of_all_pairs() -> None:
    grid = rule_grid((256,), causal=False, block=16, sink=16, alpha_step=64)
    for index, density in enumerate(grid.density(256)):
        mask = grid.pattern(index).bind(N=256).mask(Tokens(256), Tokens(256))
        assert density == pytest.approx(mask.double().mean().item(), abs=1e-12)
    assert grid.density(256).max() > 0.98


def pooled(mask: Tensor, block: int) -> Tensor:
    blocks = mask.shape[-1] // block
    return mask.double().view(blocks, block, blocks, block).sum((1, 3))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [32, 64, 256])
def test_cover_is_the_share_of_pairs_that_the_deployed_pattern_keeps(causal: bool, length: int) -> None:
    grid = rule_grid((64, 128), 256, causal=causal, block=16, sink=16)
    exists = torch.ones(length, length)
    exists = pooled(exists.tril() if causal else exists, 16)
    for index in range(len(grid)):
        pairs = pooled(grid.pattern(index).bind(N=length).mask(Tokens(length), Tokens(length)), 16)
        share = torch.where(exists > 0, pairs / exists.clamp(min=1), 0)
        torch.testing.assert_close(grid.block_cover(index, length), share, rtol=0, atol=1e-12)
        assert torch.equal(grid.block_mask(index, length), pairs > 0)


@pytest.mark.parametrize("causal, charge", [(True, "deployed"), (True, "searched"), (False, "deployed")])
def test_loss_is_the_influence_that_the_cover_leaves_out(causal: bool, charge: str) -> None:
    grid = rule_grid((64, 128), 256, causal=causal, block=16, sink=16, charge=charge)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    influence = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    influence = influence.tril() if causal else influence
    got = grid.losses(influence, 128)
    for index in range(len(grid)):
        expected = (influence * (1 - grid.block_cover(index, 128))).sum((-2, -1))
        torch.testing.assert_close(got[..., index], expected, rtol=1e-10, atol=1e-10)


def test_the_searched_form_is_the_released_codes() -> None:
    rules = RuleSet((Rule(-1024, 0.625), Rule(512, 0.25), Rule(0, 1), Rule(100, 0)), charge="searched")
    # w = max(floor(alpha / 64 + beta N / 64), 1) band blocks beside one sink block, of 32
    np.testing.assert_allclose(rules.density(2048), [(4 + 1) / 32, (16 + 1) / 32, 1.0, (1 + 1) / 32])
    masks = [rules.block_mask(index, 2048) for index in range(4)]
    assert [int(mask[-1].sum()) for mask in masks] == [5, 17, 32, 2]
    assert torch.equal(masks[2], torch.ones(32, 32).tril().bool())
    assert (rules.deployed_density(2048) <= rules.density(2048)).all()


def test_a_rule_of_the_whole_length_misses_nothing() -> None:
    grid = rule_grid((1024, 2048), 4096)
    whole = grid.rules.index(Rule(0.0, 1.0))
    for length in (1024, 2048):
        blocks = length // 64
        missed = grid.losses(torch.ones(blocks, blocks).tril(), length)
        assert missed[whole] == 0 and missed.max() > 0


@pytest.mark.parametrize(
    "arguments, text",
    [
        (dict(lengths=(2048, 1024)), r"lengths must be given and increase, got \[2048, 1024\]"),
        (
            dict(lengths=(1024,), extend=512),
            "extend must be at least the longest profiled length 1024, got 512",
        ),
        (dict(lengths=(1024,), alpha_step=0), "alpha_step must be at least 1"),
        (dict(lengths=(1024,), sink=32), "sink must be a multiple of block, got sink 32 and block 64"),
        (dict(lengths=(1024,), minimum=64), r"holds the sink and one more block \(128\), got 64"),
        (dict(lengths=(1024,), causal=False, charge="searched"), "need charge 'deployed'"),
    ],
)
def test_wrong_settings_are_named(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        rule_grid(**arguments)  # type: ignore[arg-type]


def test_lengths_and_blocks_must_agree() -> None:
    rules = RuleSet((Rule(0, 0.5),))
    with pytest.raises(ValueError, match="length must be a multiple of block 64, got 100"):
        rules.losses(torch.ones(2, 2), 100)
    with pytest.raises(ValueError, match="influence has 4 blocks, but length 128 has 2 of 64 tokens"):
        rules.losses(torch.ones(4, 4), 128)
