"""What the tables of the terminal and of the page hold: the same columns, the same digits, the same notes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from attlas.report.run import Method, Quality, Run, Timing

__all__ = [
    "COLUMNS",
    "ByLength",
    "Column",
    "by_length_tables",
    "columns_of",
    "footnotes",
    "other_items",
    "quality_table",
    "sections",
]

ABSENT = "–"
MEBI = 2**20


@dataclass(frozen=True)
class Column:
    """One column: group, two-line heading, how a method's figure is found, shown, explained."""

    group: str
    heading: tuple[str, str]
    value: Callable[[Method, int], float | None]
    digits: str
    help: str
    page_only: bool = False

    def text(self, method: Method, length: int) -> str:
        value = self.value(method, length)
        return ABSENT if value is None else format(value, self.digits)


def _quality(
    field: str, read: Callable[[Method], Mapping[int, Quality]] = lambda method: method.quality
) -> Callable[[Method, int], float | None]:
    return lambda method, length: getattr(read(method).get(length, Quality()), field)


def _time(field: str, unit: float = 1.0) -> Callable[[Method, int], float | None]:
    def find(method: Method, length: int) -> float | None:
        value = getattr(method.time.get(length, Timing()), field)
        return None if value is None else value / unit

    return find


def _density(method: Method, length: int) -> float | None:
    measured = length in method.quality or length in method.time
    return method.density_at(length) if measured else None


_KEPT = Column(
    "KV memory", ("KV", "kept"), _density, ".1%", "deployed mean KV density: tokens kept / all tokens"
)
_OF_BOUND = "bound / attention: 100% is the limit"
_NLL = "nats per token of unseen text, low is good"
_CE, _EXACT = "nats per answer token, low is good", "share of needles answered exactly"
_PROMISED = "KV MiB that the deployed density promises"
_OFF = "measured KV bytes against the promised ones"
_SINGLE = "whole model, one step of a single row"
COLUMNS: tuple[Column, ...] = (
    _KEPT,
    Column("KV memory", ("KV", "MiB"), _time("kv_bytes", MEBI), ".1f", "key-value cache as measured"),
    Column("KV memory", ("promised", "MiB"), _time("kv_bytes_bound", MEBI), ".1f", _PROMISED, page_only=True),
    Column("KV memory", ("off", "promise"), _time("kv_off"), "+.1%", _OFF),
    Column("Quality", ("text", "NLL"), _quality("text_nll"), ".3f", _NLL),
    Column("Quality", ("answer", "CE"), _quality("answer_ce"), ".3f", _CE),
    Column("Quality", ("exact", "match"), _quality("exact"), ".0%", _EXACT),
    Column("Prefill", ("prefill", "s"), _time("prefill_seconds"), ".2f", "whole model, the prompt"),
    Column("Prefill", ("attn", "s"), _time("prefill_attention_seconds"), ".2f", "attention alone"),
    Column("Prefill", ("bound", "s"), _time("prefill_bound_seconds"), ".2f", "least possible attention time"),
    Column("Prefill", ("of", "bound"), _time("prefill_fraction"), ".0%", _OF_BOUND),
    Column("Decode", ("one row", "ms"), _time("decode_ms_single"), ".1f", _SINGLE, page_only=True),
    Column("Decode", ("decode", "ms"), _time("decode_ms"), ".1f", "whole model, one step of the batch"),
    Column("Decode", ("attn", "ms"), _time("decode_attention_ms"), ".1f", "attention alone"),
    Column("Decode", ("bound", "ms"), _time("decode_bound_ms"), ".1f", "reading the kept KV bytes once"),
    Column("Decode", ("of", "bound"), _time("decode_fraction"), ".0%", _OF_BOUND),
)
_MULTI_KEY = (
    Column("Quality", ("answer", "CE"), _quality("answer_ce", lambda m: m.multi_key), ".3f", _CE),
    Column("Quality", ("exact", "match"), _quality("exact", lambda m: m.multi_key), ".0%", _EXACT),
)


def columns_of(run: Run, groups: Iterable[str], *, page: bool = False) -> tuple[Column, ...]:
    """The columns of these groups for which a main method has at least one figure."""
    lengths, wanted = {*run.quality_lengths, *run.time_lengths}, set(groups)
    return tuple(
        column
        for column in COLUMNS
        if column.group in wanted
        and (page or not column.page_only)
        and any(column.value(method, length) is not None for method in run.main_methods for length in lengths)
    )


def sections(run: Run, columns: Iterable[Column]) -> list[tuple[int, tuple[Method, ...]]]:
    """Length and methods of each section, ascending: those with a figure besides the density."""
    telling = [column for column in columns if column is not _KEPT]
    found = [
        (n, tuple(m for m in run.main_methods if any(c.value(m, n) is not None for c in telling)))
        for n in sorted({*run.quality_lengths, *run.time_lengths})
    ]
    return [(length, rows) for length, rows in found if rows]


@dataclass(frozen=True)
class ByLength:
    """A table with methods down and lengths across, the same few columns at each length."""

    title: str
    note: str
    methods: tuple[Method, ...]
    lengths: tuple[int, ...]
    columns: tuple[Column, ...]


def quality_table(run: Run) -> ByLength | None:
    """Memory kept and quality of the main methods; None without quality figures."""
    methods = tuple(method for method in run.main_methods if method.quality)
    columns = (_KEPT, *(column for column in COLUMNS if column.group == "Quality"))
    return ByLength("Quality", "", methods, _lengths(methods), columns) if methods else None


def by_length_tables(run: Run) -> tuple[ByLength, ...]:
    """The smaller tables that the run has figures for: two keys, and other budgets."""
    found = []
    asked = tuple(method for method in run.methods if method.multi_key)
    if asked:
        note = "Each context holds two facts of one kind, and the question tells them apart by their owner"
        note += f"{_needles(q for m in asked for q in m.multi_key.values())}."
        found.append(ByLength("Two facts of one kind", note, asked, run.multi_key_lengths, _MULTI_KEY))
    others = [method for method in run.methods if not method.main and method.quality]
    if others:
        others.sort(key=lambda method: -(method.budget or 0))
        note = f"Other budgets{_needles(q for m in others for q in m.quality.values())}."
        if other_items(run):
            note += " These are other items than the main comparison's: text NLL does not compare with it."
        columns = (_KEPT, *(column for column in COLUMNS if column.group == "Quality"))
        found.append(ByLength("Other budgets", note, tuple(others), _lengths(others), columns))
    return tuple(found)


def other_items(run: Run) -> bool:
    """Whether other budgets were scored on another number of needles than the main comparison."""
    main, other = (
        {(n, q.needles) for m in run.methods if m.main is is_main for n, q in m.quality.items()}
        for is_main in (True, False)
    )
    return not other <= main


def _lengths(methods: Iterable[Method]) -> tuple[int, ...]:
    return tuple(sorted({length for method in methods for length in method.quality}))


def _needles(qualities: Iterable[Quality]) -> str:
    counts = sorted({quality.needles for quality in qualities if quality.needles})
    return (
        f", {'–'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} needles per length" if counts else ""
    )


def footnotes(run: Run) -> list[str]:
    """What must stand beside the figures: needles, unprofiled lengths, batch sizes, what is absent."""
    notes = []
    needles = _needles(q for m in run.main_methods for q in m.quality.values())
    if needles:
        notes.append(f"{needles.removeprefix(', ')}.")
    unseen = [n for n in run.quality_lengths if run.lengths and n not in run.lengths]
    if unseen:
        notes.append(f"Never profiled: {', '.join(f'{n:,}' for n in unseen)} tokens.")
    if not run.time_lengths:
        return [*notes, "Times and KV bytes were not measured in this run."]
    times = [timing for method in run.main_methods for timing in method.time.values()]
    read = ", ".join(map(str, sorted({t.prefill_batch for t in times if t.prefill_batch})))
    rows = ", ".join(map(str, sorted({t.batch for t in times if t.batch})))
    if rows:
        prefill = f", prefill: batch {read}" if read else ""
        notes.append(f"KV bytes and decoding: batch {rows}{prefill}.")
    return notes
