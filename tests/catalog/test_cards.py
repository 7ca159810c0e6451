"""Every card says what it must, and what it names exists."""

from __future__ import annotations

import dataclasses
import json

import pytest

import attlas
from attlas._common.errors import UsageError
from attlas.catalog import Card, Claim, all_cards, find, resolve

CARD = Card(
    key="ring",
    title="Ring",
    year=2023,
    room="attend",
    kind="pattern",
    what="Attends in a ring.",
    lives=("attlas.pattern:causal",),
    source="arXiv:0000.00000",
)


@pytest.mark.parametrize("card", all_cards(), ids=lambda card: card.key)
def test_card_is_complete_and_its_paths_exist(card):
    assert card.room in attlas.ROOMS
    assert 2014 <= card.year <= 2030
    for path in card.lives:
        assert callable(resolve(path)), path
    if card.claim is not None:
        claim = resolve(card.claim)
        assert isinstance(claim, Claim)
        assert claim.seeds >= 3 and claim.says and claim.rule and claim.minutes > 0
    assert json.loads(json.dumps(card.to_dict()))["key"] == card.key


def test_moa_is_in_the_atlas():
    assert find("moa").source == "arXiv:2406.14909"


def test_listing_loads_no_system(isolated_python):
    loaded = isolated_python(
        "import sys; from attlas.catalog import all_cards; all_cards()",
        "print('transformers' in sys.modules, 'attlas.tune' in sys.modules)",
    )
    assert loaded == "False False"


def test_unknown_system_suggests_a_near_one():
    with pytest.raises(UsageError, match="no system named 'moae' in the atlas; did you mean 'moa'"):
        find("moae")
    with pytest.raises(UsageError, match="known: .*moa"):
        find("zzzzzz")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"key": "Ring!"}, "key must be lower-case letters.*'Ring!'"),
        ({"what": " "}, "card 'ring': what is empty"),
        ({"lives": ()}, "lives is empty; name the import path"),
        ({"lives": ("attlas.pattern.causal",)}, "import path reads 'attlas.module:name'"),
        ({"claim": "os:system"}, "got 'os:system'"),
    ],
)
def test_bad_cards(change, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(CARD, **change)
