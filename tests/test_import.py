"""What importing Attlas does, and does not."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import attlas


def test_import_is_light_and_patches_nothing(isolated_python):
    printed = isolated_python(
        "import sys",
        "import attlas",
        "print('torch' in sys.modules, 'transformers' in sys.modules, 'altair' in sys.modules)",
    )
    assert printed == "False False False"


def test_the_operator_does_not_load_transformers(isolated_python):
    printed = isolated_python(
        "import sys, torch",
        "import attlas as at",
        "q = torch.ones(1, 1, 4, 8)",
        "at.attend(q, q, q, pattern=at.causal())",
        "print('transformers' in sys.modules)",
    )
    assert printed == "False"


def test_importing_every_room_leaves_torch_and_transformers_as_they_were(isolated_python):
    printed = isolated_python(
        "import torch, transformers, importlib",
        "from torch.nn import functional as F",
        "from transformers import AttentionInterface, GenerationMixin, AttentionMaskInterface",
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as fns",
        "from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as masks",
        "def look():",
        "    return (F.scaled_dot_product_attention, GenerationMixin.generate,",
        "            GenerationMixin._prepare_cache_for_generation, sorted(fns), sorted(masks),",
        "            torch.get_default_dtype(), torch.get_num_threads())",
        "before = look()",
        "import attlas",
        "for room in attlas.ROOMS: importlib.import_module('attlas.' + room)",
        "print(before == look())",
    )
    assert printed == "True"


@pytest.mark.parametrize("name", [name for name in attlas.__all__ if name != "__version__"])
def test_every_public_name_loads(name):
    assert getattr(attlas, name) is not None
    assert name in dir(attlas)


@pytest.mark.parametrize("name", ["attend", "tune"])
def test_a_room_named_like_its_function_can_be_called(name):
    room = getattr(attlas, name)
    assert isinstance(room, ModuleType) and callable(room)
    assert inspect.signature(room).parameters


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'attlas' has no attribute 'atend'"):
        attlas.atend  # noqa: B018


def test_rooms_import_only_from_those_before_them(project):
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])"],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_pickle_and_no_torch_load(project):
    offenders = [
        str(path.relative_to(project))
        for path in (project / "src").rglob("*.py")
        if any(
            word in path.read_text(encoding="utf-8")
            for word in ("import pickle", "torch.load(", "torch.save(")
        )
    ]
    assert offenders == []
