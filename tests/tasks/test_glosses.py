"""Glosses: what is read, what is refused, splits without common texts, words as ids."""

from pathlib import Path

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.tasks import GLOSS_CATEGORIES, PADDING, UNKNOWN, glosses, vocabulary
from attlas.tasks.glosses import words_of
from skips import needs

LINES = """\
  1 This software and database is being provided to you, the LICENSEE, by
  2 Princeton University | under the following license.
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived
00021939 05 n 01 cat 0 001 @ 00001740 n 0000 | a feline; "the cat | that I saw"
00021940 05 n 01 dog 0 001 @ 00001740 n 0000 | a canine that barks
00021941 20 n 01 oak 0 001 @ 00001740 n 0000 | a deciduous tree
00021942 20 n 01 fern 0 001 @ 00001740 n 0000 | a canine that barks
00021943 28 n 01 hour 0 001 @ 00001740 n 0000 | sixty minutes
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data.noun").write_text(LINES)
    monkeypatch.setenv("ATTLAS_WORDNET", str(tmp_path))
    return tmp_path


def test_a_gloss_is_the_text_behind_the_first_bar_and_its_class_the_file_number(folder):
    data = glosses()
    assert data.names == GLOSS_CATEGORIES and len(GLOSS_CATEGORIES) == 26
    found = {text: data.names[label] for text, label in zip(data.texts, data.labels.tolist(), strict=True)}
    assert found == {
        "that which is perceived": "Tops",
        'a feline; "the cat | that I saw"': "animal",
        "a canine that barks": "animal",  # the fern's equal text is dropped
        "a deciduous tree": "plant",
        "sixty minutes": "time",
    }


def test_categories_choose_and_order_the_labels(folder):
    data = glosses(["plant", "animal"])
    assert data.names == ("plant", "animal")
    assert sorted(zip(data.texts, data.labels.tolist(), strict=True)) == [
        ('a canine that barks', 1),
        ("a deciduous tree", 0),
        ('a feline; "the cat | that I saw"', 1),
    ]  # fmt: skip


def test_the_seed_alone_decides_the_order_and_parts_are_disjoint(folder):
    orders = {glosses(seed=seed).texts for seed in range(8)}
    assert len(orders) > 1 and len({frozenset(order) for order in orders}) == 1
    data = glosses(seed=3)
    assert data.texts == glosses(seed=3).texts
    assert glosses(count=2, seed=3).texts == data.texts[:2]
    train, test = data.split(3, 2)
    assert train.texts + test.texts == data.texts and torch.equal(test.labels, data.labels[3:])
    first = next(train.batches(4, seed=1))
    assert (
        torch.equal(first, next(train.batches(4, seed=1))) and 0 <= int(first.min()) <= int(first.max()) < 3
    )


def test_wrong_requests_say_what_is_possible(folder):
    with pytest.raises(
        ValueError, match=r"categories must be different ones of Tops, act, .*got animal, fish"
    ):
        glosses(["animal", "fish"])
    with pytest.raises(ValueError, match=r"different ones of .*, got animal, animal"):
        glosses(["animal", "animal"])
    with pytest.raises(ValueError, match="count must be 1 to 2, the glosses of these categories, got 3"):
        glosses(["animal"], count=3)
    with pytest.raises(ValueError, match="at least 1 each and 5 together at most, got \\(4, 2\\)"):
        glosses().split(4, 2)


def test_a_missing_or_foreign_file_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTLAS_WORDNET", str(tmp_path))
    with pytest.raises(UsageError, match=r"data\.noun is missing; install .* wordnet-base .*ATTLAS_WORDNET"):
        glosses()
    for name, content, message in (
        ("verbs", "00001740 29 v 01 breathe 0 001 | draw air\n", r"line 1 of .* no synset .*03 to 28"),
        ("cut", "00001740 03 n 01 entity 0 003\n", "line 1 of .* no synset"),
        ("empty", "  1 This software\n", "holds no synset; give the data.noun of WordNet"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.noun").write_text(content)
        monkeypatch.setenv("ATTLAS_WORDNET", str(tmp_path / name))
        with pytest.raises(UsageError, match=message):
            glosses()
    (tmp_path / "verbs" / "data.noun").write_bytes(b"\xff\xff")
    monkeypatch.setenv("ATTLAS_WORDNET", str(tmp_path / "verbs" / ".." / "verbs"))
    with pytest.raises(UsageError, match=r"cannot be read as WordNet's data\.noun"):
        glosses()


@needs("wordnet")
def test_the_real_file_has_26_classes_and_80_000_texts():
    data = glosses(seed=0)
    assert len(data) > 75_000 and len(set(data.texts)) == len(data)
    assert set(data.labels.tolist()) == set(range(26))
    assert all(text for text in data.texts)


def test_words_keep_inner_hyphens_and_drop_the_rest():
    assert words_of('A man-eater (at 5); "it\'s -- so"') == ["a", "man-eater", "at", "5", "it's", "so"]


def test_the_vocabulary_knows_the_frequent_words_of_the_texts_that_it_is_made_from():
    words = vocabulary(["the cat saw the dog", "a dog and the cat", "rare"])
    assert words.words == ("<padding>", "<unknown>", "the", "cat", "dog")
    assert vocabulary(["b a b a c"], least=1, most=2).words[2:] == ("a", "b")
    ids, valid = words.encode(["the rare dog", "cat", "?!"], length=2)
    assert ids.tolist() == [[2, UNKNOWN], [3, PADDING], [UNKNOWN, PADDING]]
    assert valid.tolist() == [[True, True], [True, False], [True, False]]
    assert len(words) == 5 and ids.dtype == torch.int64
    with pytest.raises(ValueError, match="length must be at least 1 word, got 0"):
        words.encode(["the"], 0)
    with pytest.raises(ValueError, match="least and most must be at least 1, got 0 and None"):
        vocabulary(["the"], least=0)
