"""WordNet noun glosses, labelled by the lexicographer file of their noun (26 classes: act, animal, ...)."""

import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from attlas._common.errors import UsageError

__all__ = [
    "GLOSS_CATEGORIES",
    "GLOSS_ORIGIN",
    "PADDING",
    "UNKNOWN",
    "WORDNET_VARIABLE",
    "Glosses",
    "Vocabulary",
    "gloss_file",
    "glosses",
    "vocabulary",
    "words_of",
]

GLOSS_ORIGIN = "WordNet 3.0, Princeton University (WordNet licence), data.noun of Debian's wordnet-base"
WORDNET_VARIABLE = "ATTLAS_WORDNET"
"""Environment variable with the folder of data.noun, where that is not Debian's."""
FOLDER = Path("/usr/share/wordnet")
GLOSS_CATEGORIES = (
    "Tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event",
    "feeling", "food", "group", "location", "motive", "object", "person", "phenomenon", "plant",
    "possession", "process", "quantity", "relation", "shape", "state", "substance", "time",
)  # fmt: skip
"""WordNet's noun files 03 to 28 in their order (lexnames(5WN)); "Tops" holds the roots of the others."""
FIRST_FILE = 3
PADDING, UNKNOWN = 0, 1
WORD = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*")


@dataclass(frozen=True, eq=False)
class Glosses:
    """Texts and their labels (n,), int64, into the class names."""

    texts: tuple[str, ...]
    labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def split(self, *counts: int) -> "tuple[Glosses, ...]":
        """Disjoint parts of these sizes, in order: `train, test = glosses(seed=0).split(4000, 1000)`.

        ValueError where there are fewer texts than asked for.
        """
        if not counts or min(counts) < 1 or sum(counts) > len(self):
            raise ValueError(
                f"split: counts must be at least 1 each and {len(self)} together at most, got {counts}"
            )
        ends = [sum(counts[: part + 1]) for part in range(len(counts))]
        return tuple(
            Glosses(self.texts[end - count : end], self.labels[end - count : end], self.names)
            for count, end in zip(counts, ends, strict=True)
        )

    def batches(self, count: int, seed: int) -> Iterator[Tensor]:
        """Endless indices (count,) of texts, drawn with replacement."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield torch.randint(0, len(self), (count,), generator=generator)


def glosses(categories: Iterable[str] | None = None, *, count: int | None = None, seed: int = 0) -> Glosses:
    """Glosses in an order shuffled by `seed` (the classes as frequent as in WordNet), the first `count`.

    categories: some of GLOSS_CATEGORIES; labels are indices into them, in the order in which they are given.
    A gloss is the whole text behind the noun, its examples included, and does not carry its file number (it
    may well hold the class's word). Of equal texts only the first is kept, so that parts of a split share
    none.

    Read from /usr/share/wordnet/data.noun (Debian's package wordnet-base, 80k glosses), or from the folder
    that the environment variable ATTLAS_WORDNET names. UsageError: there is no such file, or it is not
    WordNet's. ValueError: an unknown category, or fewer glosses than `count`.
    """
    names = GLOSS_CATEGORIES if categories is None else tuple(categories)
    wrong = [name for name in names if name not in GLOSS_CATEGORIES]
    if wrong or not names or len(set(names)) < len(names):
        raise ValueError(
            f"categories must be different ones of {', '.join(GLOSS_CATEGORIES)}, "
            f"got {', '.join(names) or 'none'}"
        )
    label = {name: index for index, name in enumerate(names)}
    found = [(text, label[name]) for text, name in _all(gloss_file()) if name in label]
    if count is not None and not 1 <= count <= len(found):
        raise ValueError(f"count must be 1 to {len(found)}, the glosses of these categories, got {count}")
    random.Random(seed).shuffle(found)
    chosen = found[:count]
    return Glosses(tuple(text for text, _ in chosen), torch.tensor([label for _, label in chosen]), names)


def gloss_file() -> Path:
    """Where WordNet's data.noun is; UsageError where it is not."""
    given = os.environ.get(WORDNET_VARIABLE)
    file = (Path(given) if given else FOLDER) / "data.noun"
    if not file.is_file():
        raise UsageError(
            f"WordNet's noun glosses are not there: {file} is missing; install Debian's package wordnet-base "
            f"(apt-get install wordnet-base), or set {WORDNET_VARIABLE} to a folder that holds data.noun"
        )
    return file


@cache
def _all(file: Path) -> tuple[tuple[str, str], ...]:
    """(gloss, category) of every synset, without repetitions of a gloss."""
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as WordNet's data.noun: {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if line.startswith("  ") or not line.strip():  # the licence at the top is set in by two spaces
            continue
        entry, bar, gloss = line.partition(" | ")
        fields = entry.split(" ", 2)
        kind = int(fields[1]) - FIRST_FILE if len(fields) == 3 and fields[1].isdecimal() else -1
        if not bar or not 0 <= kind < len(GLOSS_CATEGORIES):
            raise UsageError(
                f"line {number} of {file} is no synset of WordNet's data.noun (offset, file number 03 to 28, "
                f"..., | gloss): {line[:60]!r}; give the file of WordNet 3.0 or 3.1"
            )
        found.setdefault(gloss.strip(), GLOSS_CATEGORIES[kind])
    if not found:
        raise UsageError(f"{file} holds no synset; give the data.noun of WordNet 3.0 or 3.1")
    return tuple(found.items())


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers, inner hyphens and apostrophes kept, other punctuation dropped."""
    return WORD.findall(text.lower())


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Words by id: id 0 is padding, 1 every word that is not in it."""

    words: tuple[str, ...]
    _ids: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", {word: index for index, word in enumerate(self.words)})

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """(ids, valid), both (texts, length): the first `length` words of each text, padding behind them.

        A text without a word is one unknown word, so that no row is empty.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1 word, got {length}")
        ids = torch.full((len(texts), length), PADDING)
        for row, text in enumerate(texts):
            found = [self._ids.get(word, UNKNOWN) for word in words_of(text)[:length]] or [UNKNOWN]
            ids[row, : len(found)] = torch.tensor(found)
        return ids, ids != PADDING


def vocabulary(texts: Iterable[str], *, least: int = 2, most: int | None = None) -> Vocabulary:
    """Words that stand at least `least` times in these texts (those to train on), the `most` frequent ones.

    By falling frequency, then alphabetically: the same texts give the same ids.
    """
    if least < 1 or (most is not None and most < 1):
        raise ValueError(f"least and most must be at least 1, got {least} and {most}")
    counts = Counter(word for text in texts for word in words_of(text))
    ranked = sorted(
        (word for word in counts if counts[word] >= least), key=lambda word: (-counts[word], word)
    )
    return Vocabulary(("<padding>", "<unknown>", *ranked[:most]))
