"""Texts, splits and long-context tasks to calibrate, select and evaluate with."""

from attlas.tasks.needles import LongItem, Question, build_items
from attlas.tasks.prompts import encode, prompt_pieces
from attlas.tasks.scoring import ItemScore, QuestionScore, score_item, score_items, summarise
from attlas.tasks.sources import SOURCES, TextSource, load_source
from attlas.tasks.splits import Passage, Passages, split_tokens, tokenise
from attlas.tasks.wordings import INSTRUCTIONS, WORDINGS, Wording

__all__ = [
    "INSTRUCTIONS",
    "SOURCES",
    "WORDINGS",
    "ItemScore",
    "LongItem",
    "Passage",
    "Passages",
    "Question",
    "QuestionScore",
    "TextSource",
    "Wording",
    "build_items",
    "encode",
    "load_source",
    "prompt_pieces",
    "score_item",
    "score_items",
    "split_tokens",
    "summarise",
    "tokenise",
]
