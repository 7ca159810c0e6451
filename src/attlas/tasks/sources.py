"""Texts to calibrate and test on, from Python itself or the user's file, each with licence and origin."""

import ast
import inspect
import json
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from attlas._common.errors import UsageError

__all__ = ["SOURCES", "TextSource", "load_source"]

_SUFFIXES = (".txt", ".md", ".rst", ".jsonl")
# Large standard modules with much prose in their docstrings; fixed, so that a run can be repeated.
_DOCUMENTED = """
    argparse ast bisect calendar cmd code codecs configparser contextlib copy csv datetime difflib dis
    doctest enum fractions ftplib functools gettext glob gzip heapq imaplib inspect ipaddress locale mailbox
    mimetypes nntplib optparse os pathlib pdb pickle pickletools platform plistlib poplib pprint profile
    pstats pydoc queue random sched shlex shutil smtplib socket socketserver ssl statistics string
    subprocess tarfile tempfile textwrap threading timeit tokenize trace traceback turtle types typing
    unittest.case unittest.mock urllib.request uuid warnings weakref zipfile
"""


@dataclass(frozen=True)
class TextSource:
    """A text with its name, licence and origin."""

    name: str
    licence: str
    origin: str
    text: str = field(repr=False)


def load_source(name: str | Path) -> TextSource:
    """The text of a known source name (see SOURCES) or of a UTF-8 file.

    Files: .txt, .md, .rst as they are; .jsonl with one object per line whose "text" is taken.
    Raises UsageError for an unknown name, a missing, unreadable or empty file, or a damaged line.
    """
    if str(name) in SOURCES:
        return SOURCES[str(name)]()
    path = Path(name)
    if not path.exists():
        raise UsageError(
            f"unknown data {str(name)!r}: neither a name ({', '.join(sorted(SOURCES))}) nor an existing "
            f"file; give one of these names or a UTF-8 text file ({', '.join(_SUFFIXES)})"
        )
    if path.is_dir():
        raise UsageError(f"data {path} is a folder; give one text file ({', '.join(_SUFFIXES)}) inside it")
    text = _read(path)
    if path.suffix == ".jsonl":
        text = _join_lines(path, text)
    if not text.strip():
        raise UsageError(f"data file {path} holds no text; give a file with text in it")
    return TextSource(path.name, "as given by the user", "file of the user", text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"data file {path} is not UTF-8 text (byte {error.start}); convert it, e.g. with `iconv -t utf-8`"
        ) from error
    except OSError as error:
        raise UsageError(f"data file {path} cannot be read: {error.strerror}") from error


def _join_lines(path: Path, content: str) -> str:
    texts = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UsageError(f"line {number} of {path} is not valid JSON ({error}); mend it") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise UsageError(f'line {number} of {path} has no string "text"; each must be {{"text": "..."}}')
        texts.append(entry["text"])
    return "\n\n".join(texts)


def _python_docs() -> TextSource:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name].strip() for name in sorted(topics))
    return TextSource("python-docs", "PSF-2.0", "pydoc_data.topics of this Python (language reference)", text)


def _python_docstrings() -> TextSource:
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for module in _DOCUMENTED.split():
        file = library.joinpath(*module.split(".")).with_suffix(".py")
        if file.exists():
            texts.extend(_docstrings(ast.parse(file.read_text(encoding="utf-8"))))
    if not texts:
        raise UsageError(
            "this Python ships without its standard library's source; use the data 'python-docs'"
        )
    origin = "docstrings of the running Python's standard library"
    return TextSource("python-docstrings", "PSF-2.0", origin, "\n\n".join(texts))


def _docstrings(tree: ast.Module) -> list[str]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    # One-liners say little and their endless list reads like no text.
    return [inspect.cleandoc(text) for text in found if text and len(text) > 80]


SOURCES: dict[str, Callable[[], TextSource]] = {
    "python-docs": _python_docs,
    "python-docstrings": _python_docstrings,
}
