"""Package lists as a graph: relations, alternatives, virtual packages, lists that are none."""

import gzip
import lzma
from pathlib import Path

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.tasks import RELATIONS, debian_packages, hashed_words
from attlas.tasks.debian_packages import package_lists

MAIN = """\
Package: mail
Version: 2
Depends: libc6 (>= 2.15), editor | vi,
 absent
Pre-Depends: dpkg:any
Description: send mail
 A longer text, which is not read.
Section: contrib/mail

Package: vi
Provides: editor, pager (= 1)
Section: editors
Suggests: mail
Description: edit

Package: nano
Provides: editor
Section: editors
Recommends: libc6
Enhances: mail

Package: libc6
Section: libs
Description: the C library

Package: dpkg
Section: admin
"""
UPDATE = "Package: libc6\nSection: oldlibs\nDescription: other\n"


def edges_of(data):
    graph = data.graph
    return {
        (data.nodes[a], RELATIONS[kind], data.nodes[b])
        for a, b, kind in zip(graph.sender, graph.receiver, graph.edge_type, strict=True)
    }


def test_relations_alternatives_and_virtual_packages(tmp_path: Path):
    (tmp_path / "a_Packages").write_text(MAIN)
    (tmp_path / "b_Packages").write_text(UPDATE)
    data = debian_packages(tmp_path, width=60)
    assert data.nodes == ("dpkg", "libc6", "mail", "nano", "vi")
    assert [data.names[label] for label in data.labels] == ["admin", "libs", "mail", "editors", "editors"]
    assert edges_of(data) == {
        ("mail", "Pre-Depends", "dpkg"), ("mail", "Depends", "libc6"), ("mail", "Depends", "vi"),
        ("mail", "Depends", "nano"), ("vi", "Suggests", "mail"), ("nano", "Recommends", "libc6"),
        ("nano", "Enhances", "mail"),
    }  # fmt: skip
    assert data.graph.edges == 8, "vi is an alternative by name and as an editor: two edges"
    texts = ["", "the C library", "send mail", "", "edit"]
    assert torch.equal(data.x, hashed_words(texts, 60))


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_packed_lists_are_the_same(tmp_path: Path, suffix: str):
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    file = tmp_path / f"Packages{suffix}"
    file.write_bytes(pack(MAIN.encode()))
    assert package_lists(tmp_path) == [file]
    assert debian_packages(file).graph.edges == 8


def test_what_is_no_list_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no list of Debian packages in .*run `apt-get update`"):
        debian_packages(tmp_path)
    wrong = tmp_path / "Packages"
    wrong.write_text("some text")
    with pytest.raises(UsageError, match="holds no package with a section, so it is no Packages file"):
        debian_packages(wrong)
    (tmp_path / "Packages.gz").write_text("not packed")
    with pytest.raises(UsageError, match="cannot be read as a list of packages: .*give a Packages file"):
        debian_packages(tmp_path / "Packages.gz")
    (tmp_path / "empty_Packages").write_text("")
    with pytest.raises(UsageError, match="no package in it"):
        debian_packages(tmp_path / "empty_Packages")
