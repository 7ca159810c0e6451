"""WordNet as a graph: what is read, what is hidden, what is refused, and the counts of the real files."""

from pathlib import Path

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.tasks import LEXICOGRAPHER_FILES, hashed_words, wordnet_graph
from skips import needs

FILES = {
    "noun": """\
  1 This software and database | under the following license.
00000010 03 n 02 entity 0 thing 1 001 ~ 00000020 n 0000 | that which is perceived
00000020 05 n 01 cat 0 003 @ 00000010 n 0000 + 00000010 v 0101 + 00000010 v 0101 | a feline | as I saw
""",
    "verb": "00000010 29 v 01 breathe 0 000 02 + 02 00 + 08 00 | draw air; draw it\n",
    "adj": "00000010 00 s 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 001 & 00000010 a 0000 | able to\n",
    "adv": "00000010 02 r 01 ably 0 001 \\ 00000010 a 0101 | in an able manner\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for part, text in FILES.items():
        (tmp_path / f"data.{part}").write_text(text)
    monkeypatch.setenv("ATTLAS_WORDNET", str(tmp_path))
    return tmp_path


def test_synsets_pointers_and_labels(folder):
    data = wordnet_graph(width=50)
    assert data.nodes == ("entity", "cat", "breathe", "a", "ably")
    assert [data.names[label] for label in data.labels.tolist()] == [
        "noun.Tops", "noun.animal", "verb.body", "adj.all", "adv.all",
    ]  # fmt: skip
    kinds = [data.kinds[kind] for kind in data.graph.edge_type.tolist()]
    assert list(zip(data.graph.sender.tolist(), data.graph.receiver.tolist(), kinds, strict=True)) == [
        (0, 1, "~"), (1, 0, "@"), (1, 2, "+"), (1, 2, "+"), (3, 3, "&"), (4, 3, "\\"),
    ]  # fmt: skip
    assert len(data.names) == 45 and data.names is LEXICOGRAPHER_FILES


def test_features_are_those_of_the_gloss_alone(folder, tmp_path, monkeypatch):
    data = wordnet_graph(width=50)
    texts = [
        "that which is perceived",
        "a feline | as I saw",
        "draw air; draw it",
        "able to",
        "in an able manner",
    ]
    assert torch.equal(data.x, hashed_words(texts, 50))
    other = tmp_path / "other"
    other.mkdir()
    for part, text in FILES.items():  # another file number, word and kind of pointer
        changed = text.replace("20 05 n 01 cat", "20 20 n 01 fern").replace(" @ ", " #p ")
        (other / f"data.{part}").write_text(changed)
    monkeypatch.setenv("ATTLAS_WORDNET", str(other))
    changed = wordnet_graph(width=50)
    assert changed.names[changed.labels[1]] == "noun.plant" and torch.equal(changed.x, data.x)


def test_equal_words_share_a_place_and_count():
    found = hashed_words(["Draw, draw air", "", "air"], 4000)
    assert found.sum(1).tolist() == [3.0, 0.0, 1.0] and float(found[0].max()) == 2.0
    assert float(found[0] @ found[2]) == 1.0
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        hashed_words(["a"], 0)


def test_splits_are_disjoint_and_repeatable(folder):
    data = wordnet_graph(width=4)
    train, test = data.split(3, 2, seed=1)
    assert sorted([*train.tolist(), *test.tolist()]) == [0, 1, 2, 3, 4]
    assert torch.equal(train, data.split(3, 1, seed=1)[0])
    with pytest.raises(ValueError, match=r"at least 1 each and 5 together at most, got \(4, 2\)"):
        data.split(4, 2, seed=0)


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("adv", None, r"lacks data\.adv; install Debian's package wordnet-base .*ATTLAS_WORDNET"),
        (
            "verb",
            "00000010 29 v 01 breathe 0 004 @ 0001\n",
            r"line 1 of .*data\.verb is no synset of WordNet",
        ),
        ("verb", "00000010 45 v 01 breathe 0 000 | air\n", "no synset of WordNet .*file number 00 to 44"),
        ("verb", "00000011 29 v 01 breathe 0 000 | air\n", "'v00000010', which no file in .* of one version"),
    ],
)
def test_what_is_no_wordnet_is_refused(folder, part, text, message):
    file = folder / f"data.{part}"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(UsageError, match=message):
        wordnet_graph()


@needs("wordnet")
def test_the_real_files_have_the_counts_of_the_sheet():
    data = wordnet_graph()
    graph = data.graph
    assert graph.nodes == 117_659 and graph.edges == 377_592 and len(data.kinds) == 26
    low, high = torch.minimum(graph.sender, graph.receiver), torch.maximum(graph.sender, graph.receiver)
    assert torch.unique(low * graph.nodes + high).numel() == 183_798
    assert int(((graph.in_degree + graph.out_degree) == 0).sum()) == 1009
    assert data.labels.unique().numel() == 45 and data.x.shape == (117_659, 300)
    alike = (data.labels[graph.sender] == data.labels[graph.receiver]).float().mean()
    assert round(float(alike), 2) == 0.69
