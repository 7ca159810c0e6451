"""Tables about nodes: what is read, and the line of what is wrong."""

from pathlib import Path

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.tasks.node_tables import NodeLabels, NodeNames, read_features, read_labels, split_nodes

NAMES = NodeNames(("a", "b", "c", "d"), 4)


def written(folder: Path, text: str) -> Path:
    file = folder / "table.csv"
    file.write_text(text)
    return file


def test_labels_get_numbers_in_the_order_of_their_names(tmp_path: Path) -> None:
    found = read_labels(written(tmp_path, "label,node,split\nwolf,c,test\ncat,a,train\n"), NAMES)
    assert (found.classes, found.node.tolist(), found.value.tolist()) == (("cat", "wolf"), [2, 0], [1, 0])
    assert found.split is not None and found.split.tolist() == [2, 0]
    known = read_labels(written(tmp_path, "node,label\nc,wolf\n"), NAMES, classes=("wolf", "ant"))
    assert known.value.tolist() == [0] and known.split is None


def test_targets_are_numbers(tmp_path: Path) -> None:
    found = read_labels(written(tmp_path, "node,label\nc,1.5\na,-2\n"), NAMES, regression=True)
    assert found.value.tolist() == [1.5, -2.0] and found.classes == ()


def test_nodes_without_names_are_numbers(tmp_path: Path) -> None:
    found = read_labels(written(tmp_path, "node,label\n3,x\n0,y\n"), NodeNames((), 4))
    assert found.node.tolist() == [3, 0]
    with pytest.raises(
        UsageError, match=r"line 2: the graph has no node '4' \(its nodes are the numbers below 4\)"
    ):
        read_labels(written(tmp_path, "node,label\n4,x\n0,y\n"), NodeNames((), 4))
    assert NodeNames((), 4).name(2) == "2" and NAMES.name(2) == "c"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("node,class\na,x\n", "has no column 'label'; its first line names node, class"),
        ("", "is empty: give a table with the columns node and label"),
        ("node,label\n", "holds no label: a line per labelled node is expected"),
        (
            "node,label\na,x\ne,y\n",
            r"line 3: the graph has no node 'e' \(name nodes without edges in a table: --nodes\)",
        ),
        ("node,label\na,x\n\na,y\n", "line 4: node 'a' stands in line 2 already; nothing was loaded"),
        ("node,label\na,x\nb\nc,\n", r"line 3: 2 columns are expected, it has 1 \(1 more line is wrong\)"),
        ("node,label,label\na,x,y\n", "has 2 columns 'label': give every column a title of its own"),
        ("#node,label\na,x\n", "line 1 begins with # and has as many columns as line 2"),
        ("node,label\na,\nb,x\n", "line 2: the label is empty: leave out the line of a node without one"),
        ("node,label,split\na,x,dev\n", "line 2: split must be train, valid, test, got 'dev'"),
        ("node,label\na,x\nb,x\n", r"has one class alone \(x\): two or more are needed to tell them apart"),
    ],
)
def test_wrong_labels_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_labels(written(tmp_path, text), NAMES)


def test_labels_that_a_model_or_a_task_cannot_take(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 2: the label must be a finite number up to .*, got 'nan'"):
        read_labels(written(tmp_path, "node,label\na,nan\n"), NAMES, regression=True)
    with pytest.raises(UsageError, match=r"label 'x' is none of the model's classes \(y, z\)"):
        read_labels(written(tmp_path, "node,label\na,x\n"), NAMES, classes=("z", "y"))
    with pytest.raises(UsageError, match="cannot be read: No such file or directory; give a table with"):
        read_labels(tmp_path / "none.csv", NAMES)


def test_features_stand_in_the_order_of_the_nodes(tmp_path: Path) -> None:
    file = written(tmp_path, "size,node,age\n1,b,2\n3,a,4\n5,d,6\n7,c,8\n")
    found = read_features(file, NAMES)
    assert found.names == ("size", "age") and found.x.tolist() == [[3, 4], [1, 2], [7, 8], [5, 6]]
    assert read_features(file, NAMES, ("age",)).x[:, 0].tolist() == [4, 2, 8, 6]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("node\na\n", "has no column beside node: a column per feature is expected"),
        ("node,size,size\na,1,2\n", "has 2 columns 'size': give every column a title of its own"),
        (",node,size\n0,a,1\n", r"column 1 of 3 has no title: name it, or leave it out \(pandas writes its"),
        ("node,size\na,1e300\n", r"line 2: size must be a finite number up to 3.4e\+38, got '1e300'"),
        ("node,size\na,1_000\n", "line 2: size must be a finite number up to .*, got '1_000'"),
        ("node,size\na,1\nb,big\n", "line 3: size must be a finite number up to .*, got 'big'"),
        ("node,size\na,1\nb,2\n", "has no line for 2 of 4 nodes, the first of them 'c'; give every node"),
    ],
)
def test_wrong_features_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_features(written(tmp_path, text), NAMES)
    with pytest.raises(UsageError, match="has no column 'age'"):
        read_features(written(tmp_path, "node,size\na,1\n"), NAMES, ("age",))


def labels(count: int, classes: int, split: torch.Tensor | None = None) -> NodeLabels:
    value = torch.arange(count) % classes
    return NodeLabels(torch.arange(count), value, tuple(map(str, range(classes))), split)


def test_a_split_is_drawn_by_the_seed_with_equal_shares() -> None:
    given = labels(100, 4)
    found = split_nodes(given, 0)
    assert torch.bincount(found).tolist() == [60, 20, 20]
    assert all(torch.bincount(found[given.value == one]).tolist() == [15, 5, 5] for one in range(4))
    assert torch.equal(found, split_nodes(given, 0)) and not torch.equal(found, split_nodes(given, 1))
    rare = split_nodes(labels(7, 7), 0)  # too few of each to share them out
    assert torch.bincount(rare).tolist() == [4, 2, 1]


def test_splits_that_cannot_be() -> None:
    own = torch.tensor([0, 0, 2, 2])
    assert torch.equal(split_nodes(labels(4, 2, own), 0), own)
    with pytest.raises(
        UsageError, match="no label is of the split test: training needs train and test nodes"
    ):
        split_nodes(labels(4, 2, torch.zeros(4, dtype=torch.int64)), 0)
    with pytest.raises(UsageError, match="4 labels are too few to be split into train, valid and test"):
        split_nodes(labels(4, 2), 0)
