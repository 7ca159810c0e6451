"""What the released code of a system really computes, where it is not what its paper says.

One file per system, `RELEASED = (Released(...), ...)`; `python -m attlas.catalog.released` computes the
figures of all, and `python -m attlas.catalog.results` writes docs/released.md from them.
"""

from __future__ import annotations

from attlas.catalog.released._entry import Released

__all__ = ["Released"]
