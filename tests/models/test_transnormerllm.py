"""TransNormerLLM: prompt and decoding against the parallel form, padding, and its sizes."""

import pytest
import torch

from attlas.layers import linear_by_layer
from attlas.layers.transnormer import TransNormerMixer, origin
from attlas.models import TRANSNORMERS, TransNormerConfig, TransNormerLLM

SMALL = TransNormerConfig(vocabulary=31, width=12, heads=2, layers=3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TransNormerLLM(SMALL).eval()


@pytest.fixture
def ids(generator):
    return torch.randint(0, 31, (2, 83), generator=generator)


@pytest.mark.parametrize("prompt", [1, 64, 82])
@torch.no_grad()
def test_prompt_and_decoding_are_the_parallel_form(model, ids, prompt):
    logits, state = model.advance(ids[:, :prompt], model.start(2))
    found = [logits]
    for token in ids[:, prompt:].split(1, 1):
        logits, state = model.advance(token, state)
        found.append(logits)
    torch.testing.assert_close(torch.cat(found, 1), model(ids), rtol=1e-5, atol=1e-5)
    assert state.position.tolist() == [83, 83]
    # H D^2 numbers of 4 bytes per row and layer, twice in the first one, after any number of tokens.
    assert state.nbytes == 2 * (2 + 1 + 1) * 2 * 6 * 6 * 4


@torch.no_grad()
def test_rows_may_be_interleaved_and_padded(model, ids):
    """Positions are of each row's own, not of the module."""
    keep = torch.ones(2, 20, dtype=torch.bool)
    keep[1, :7] = False
    _, state = model.advance(ids[:, :20], model.start(2), valid=keep)
    assert state.position.tolist() == [20, 13]
    got, _ = model.advance(ids[:, 20:23], state.index_select(torch.tensor([1, 0])))
    short = torch.cat([ids[1, 7:20], ids[0, 20:23]])[None]
    torch.testing.assert_close(got[0], model(short)[0, 13:], rtol=1e-5, atol=1e-5)
    padded = model(ids[:, :20], valid=keep)
    torch.testing.assert_close(padded[1, 7:], model(ids[1:, 7:20])[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_origin_inference_is_the_same_for_short_texts(model, ids):
    robust = model(ids)
    textbook, _ = model.advance(ids, model.start(2), sweep=origin)
    torch.testing.assert_close(textbook, robust, rtol=1e-4, atol=1e-4)


def test_positions_are_in_the_first_layer_only(model):
    assert [block.mixer.theta is not None for block in model.blocks] == [True, False, False]
    assert model.blocks[1].mixer.slopes == pytest.approx([2**-4 * 0.50001, 2**-8 * 0.50001])
    paper = TransNormerConfig(31, 12, 2, 3, lrpe=(0, 2), slopes=linear_by_layer)
    made = TransNormerLLM(paper)
    assert [block.mixer.theta is not None for block in made.blocks] == [True, False, True]
    assert made.blocks[2].mixer.slopes == pytest.approx([0.0, 4 / 3])


def test_embeddings_are_scaled_and_parameters_start_small(model):
    assert model.scale == pytest.approx(12**0.5)
    wide = TransNormerLLM(TransNormerConfig(1000, 64, 4, 1))
    for matrix in (wide.embedding.weight, wide.head.weight, wide.blocks[0].mixer.out.weight):
        assert matrix.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_released_size():
    with torch.device("meta"):
        made = TransNormerLLM(TRANSNORMERS["385M"])
    blocks = sum(p.numel() for p in made.blocks.parameters())
    assert blocks == 24 * (5 * 1024**2 + 3 * 1024 * 2816) + 1024
    assert made.blocks[0].mlp.left.out_features == 2816


def test_mixers_of_your_own_and_errors():
    made = TransNormerLLM(SMALL, mixer=lambda layer: TransNormerMixer(12, 2, slopes=[0.0, float(layer)]))
    assert made.blocks[2].mixer.slopes == (0.0, 2.0)
    with pytest.raises(ValueError, match=r"lrpe must name layers from 0 to 2, got \[3\]"):
        TransNormerConfig(31, 12, 2, 3, lrpe=(0, 3))
