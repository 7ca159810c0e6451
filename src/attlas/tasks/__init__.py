"""Texts, splits and long-context tasks to calibrate, select and evaluate with."""

from attlas.tasks.bytes import ByteText, byte_text
from attlas.tasks.debian_packages import RELATIONS, debian_packages
from attlas.tasks.extrapolation import losses_at_lengths
from attlas.tasks.far_nodes import NodeTask, digit_neighbours, distant_hubs, ring_transfer, two_cliques
from attlas.tasks.flagged_paths import PATH_CLASSES, FlaggedPaths, flagged_paths
from attlas.tasks.glosses import (
    GLOSS_CATEGORIES,
    GLOSS_ORIGIN,
    PADDING,
    UNKNOWN,
    Glosses,
    Vocabulary,
    glosses,
    vocabulary,
)
from attlas.tasks.images import Labelled, digits_on_canvas, photo_crops, photos
from attlas.tasks.labelled_graph import LabelledGraph, hashed_words
from attlas.tasks.molecules import (
    ATOM_KINDS,
    BOND_KINDS,
    Molecule,
    MoleculeBatch,
    molecule_batches,
    molecules_together,
    read_sdf,
    shuffled,
    solubility,
)
from attlas.tasks.movielens_kg import MovieLensKG, collaborative_graph, movielens_kg
from attlas.tasks.mqar import UNASKED, Recall, mqar
from attlas.tasks.needles import LongItem, Question, build_items
from attlas.tasks.pattern_sbm import PatternGraph, pattern_sbm
from attlas.tasks.prompts import encode, prompt_pieces
from attlas.tasks.ranking import filtered_ranks, rank_summary, recall_and_ndcg
from attlas.tasks.scoring import ItemScore, QuestionScore, score_item, score_items, summarise
from attlas.tasks.sequences import (
    ASK_KEY,
    PASSKEY_VOCABULARY,
    SHOW_KEY,
    copying,
    digit_tokens,
    induction,
    passkey,
)
from attlas.tasks.series import SERIES, Forecasts, Series, forecasts, load_series
from attlas.tasks.sources import SOURCES, TextSource, load_source
from attlas.tasks.splits import Passage, Passages, split_tokens, tokenise
from attlas.tasks.wordings import INSTRUCTIONS, WORDINGS, Wording
from attlas.tasks.wordnet_graph import LEXICOGRAPHER_FILES, wordnet_graph

__all__ = [
    "ASK_KEY",
    "ATOM_KINDS",
    "BOND_KINDS",
    "GLOSS_CATEGORIES",
    "GLOSS_ORIGIN",
    "INSTRUCTIONS",
    "LEXICOGRAPHER_FILES",
    "PADDING",
    "PASSKEY_VOCABULARY",
    "PATH_CLASSES",
    "RELATIONS",
    "SERIES",
    "SHOW_KEY",
    "SOURCES",
    "UNASKED",
    "UNKNOWN",
    "WORDINGS",
    "ByteText",
    "FlaggedPaths",
    "Forecasts",
    "Glosses",
    "ItemScore",
    "Labelled",
    "LabelledGraph",
    "LongItem",
    "Molecule",
    "MoleculeBatch",
    "MovieLensKG",
    "NodeTask",
    "Passage",
    "Passages",
    "PatternGraph",
    "Question",
    "QuestionScore",
    "Recall",
    "Series",
    "TextSource",
    "Vocabulary",
    "Wording",
    "build_items",
    "byte_text",
    "collaborative_graph",
    "copying",
    "debian_packages",
    "digit_neighbours",
    "digit_tokens",
    "digits_on_canvas",
    "distant_hubs",
    "encode",
    "filtered_ranks",
    "flagged_paths",
    "forecasts",
    "glosses",
    "hashed_words",
    "induction",
    "load_series",
    "load_source",
    "losses_at_lengths",
    "molecule_batches",
    "molecules_together",
    "movielens_kg",
    "mqar",
    "passkey",
    "pattern_sbm",
    "photo_crops",
    "photos",
    "prompt_pieces",
    "rank_summary",
    "read_sdf",
    "recall_and_ndcg",
    "ring_transfer",
    "score_item",
    "score_items",
    "shuffled",
    "solubility",
    "split_tokens",
    "summarise",
    "tokenise",
    "two_cliques",
    "vocabulary",
    "wordnet_graph",
]
