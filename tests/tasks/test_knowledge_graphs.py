"""Small knowledge graphs: counts, questions in both directions, known answers, the user's own files."""

from __future__ import annotations

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.tasks.knowledge_graphs import knowledge_graph, read_triples
from skips import needs

COUNTS = {
    "nations": (14, 55, 1592, 199, 201),
    "kinships": (104, 25, 8544, 1068, 1074),
    "umls": (135, 46, 5216, 652, 661),
}


@needs("pykeen")
@pytest.mark.parametrize("name", COUNTS)
def test_the_files_of_pykeen(name):
    data = knowledge_graph(name)
    parts = (data.train, data.valid, data.test)
    assert (len(data.entities), len(data.relations), *map(len, parts)) == COUNTS[name]
    every = torch.cat(parts)
    assert len(every.unique(dim=0)) == len(every), "no triple twice, and none in two parts"
    graph = data.graph()
    assert torch.equal(torch.stack([graph.sender, graph.edge_type, graph.receiver], 1), data.train)


def test_an_unknown_name():
    with pytest.raises(ValueError, match="name must be one of nations, kinships, umls, got 'fb15k'"):
        knowledge_graph("fb15k")


@pytest.fixture
def files(tmp_path):
    parts = {
        "train": "b\tlikes\ta\na\tlikes\tc\na\tknows\tb\n",
        "valid": "c\tlikes\ta\n",
        "test": "a\tlikes\td\n",
    }
    for name, text in parts.items():
        (tmp_path / f"{name}.tsv").write_text(text)
    return [tmp_path / f"{name}.tsv" for name in parts]


def test_own_files_and_their_answers(files):
    data = read_triples(*files)
    assert data.entities == ("a", "b", "c", "d") and data.relations == ("knows", "likes")
    questions = data.questions(data.test)
    assert questions.tolist() == [[0, 1, 3], [3, 3, 0]], "for the tail, and by the inverse for the head"
    known = data.answers(questions)
    assert known.tolist() == [[False, False, True, True], [True, False, False, False]]
    assert read_triples(files[0]).test.shape == (0, 3)


def test_a_triple_counts_once_and_no_question_has_no_answers(files):
    files[0].write_text(files[0].read_text() + "a\tknows\tb\nb\tlikes\ta\n")
    data = read_triples(*files)
    assert data.train.tolist() == [[1, 1, 0], [0, 1, 2], [0, 0, 1]]
    assert data.answers(data.questions(data.test[:0])).shape == (0, 4)


def test_wrong_files_name_the_line(files):
    files[1].write_text("c\tlikes\ta\nbroken\n")
    with pytest.raises(UsageError, match=r"line 2 of .*valid.tsv must have 3 columns"):
        read_triples(*files)
    files[1].write_text("c\thates\ta\n")
    with pytest.raises(UsageError, match=r"relation 'hates' stands in no training triple of .*train.tsv"):
        read_triples(*files)
    files[0].write_text("\n")
    with pytest.raises(UsageError, match=r"train.tsv holds no triple"):
        read_triples(files[0])
