"""Facts about the machine for results: enough to judge a figure, nothing that names a host or a path."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = [
    "PACKAGE",
    "available_memory",
    "machine",
    "peak_memory",
    "resident_memory",
    "source_digest",
    "total_memory",
    "versions",
]

PACKAGE = Path(__file__).parents[1]  # where the rooms are
_PACKAGES = ("torch", "transformers", "numpy", "scipy")
_MEMINFO = Path("/proc/meminfo")
_STATM = Path("/proc/self/statm")
_CGROUP = Path("/sys/fs/cgroup")


def versions() -> dict[str, str]:
    """Versions of Attlas, Python and the packages that decide a figure; absent packages are left out."""
    found = {"python": platform.python_version()}
    for package in ("attlas", *_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def source_digest(*rooms: str) -> str:
    """Short hash of the source files of these rooms of Attlas: the same code, the same name."""
    found = hashlib.sha256()
    for room in sorted(rooms):
        for file in sorted((PACKAGE / room).rglob("*.py")):
            found.update(file.relative_to(PACKAGE).as_posix().encode())
            found.update(file.read_bytes())
    return found.hexdigest()[:12]


def machine() -> dict[str, Any]:
    """Processor, cores, threads in use and memory (bytes) of this machine."""
    import torch

    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": total_memory(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total_memory() -> int | None:
    """Memory of the machine or of this process's container in bytes; None where it cannot be told."""
    limits = [size for size in (_meminfo("MemTotal"), _cgroup("memory.max")) if size is not None]
    if limits:
        return min(limits)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def available_memory() -> int | None:
    """Bytes that can still be taken without swapping, within the container's limit; None if unknown."""
    limits = [_meminfo("MemAvailable")]
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is not None and used is not None:
        limits.append(max(limit - used, 0))
    known = [size for size in limits if size is not None]
    return min(known) if known else None


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int | None:
    """Memory of this process that is in use now, in bytes; None where the system does not tell."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _meminfo(field: str) -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    return None


def _cgroup(name: str) -> int | None:
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        name, _, rest = line.partition(":")
        if name.strip() == "model name":
            return rest.strip()
    return platform.processor()
