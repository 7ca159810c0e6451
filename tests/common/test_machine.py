"""Facts about the machine."""

from __future__ import annotations

import os
import platform

from attlas._common import machine
from attlas._common.files import to_json


def test_machine_is_json_and_names_no_host():
    text = to_json({"machine": machine.machine(), "versions": machine.versions()})
    assert "torch" in machine.versions()
    assert platform.node() not in text and "/home" not in text and "/root" not in text


def test_memory_is_ordered():
    total, available = machine.total_memory(), machine.available_memory()
    assert total is not None and available is not None
    assert 0 < machine.peak_memory() < total
    assert 0 < available <= total
    resident = machine.resident_memory()
    assert resident is not None and 0 < resident < total


def test_resident_memory_is_not_told_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_STATM", tmp_path / "none")
    assert machine.resident_memory() is None
    (tmp_path / "statm").write_text("900 30 10")
    monkeypatch.setattr(machine, "_STATM", tmp_path / "statm")
    assert machine.resident_memory() == 30 * os.sysconf("SC_PAGE_SIZE")


def test_container_limit_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.available_memory() == 600
    assert machine.total_memory() == 1000


def test_no_limit_means_the_machine(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "none")
    assert machine.available_memory() is None


def test_the_digest_names_the_code_of_the_rooms(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PACKAGE", tmp_path)
    for room in ("one", "two"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "code.py").write_text("x = 1")
    before = machine.source_digest("one")
    assert machine.source_digest("one", "two") == machine.source_digest("two", "one") != before
    (tmp_path / "two" / "code.py").write_text("x = 2")
    assert machine.source_digest("one") == before
    (tmp_path / "one" / "code.py").write_text("x = 2")
    assert machine.source_digest("one") != before
