"""The run-time checker of annotations that jaxtyping's import hook applies in tests."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

# As in PEP 484 and mypy, an int is accepted where a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
