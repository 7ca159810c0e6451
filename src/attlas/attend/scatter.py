"""Whether a pattern lies too scattered for tiles: told from its layout, before anything is compiled."""

from attlas.pattern import Layout, Pattern, Tile, Tokens

__all__ = ["GAP", "block_size", "laid_out", "scattered"]

GAP = 64
"""Keys: computing a gap of this size costs less than one more call and merge."""
FEW_PARTS = 64
ROWS_PER_PART = 4
"""A part is evaluated and called on its own, for the price of some rows in the generic backend."""
HELD = 4
"""Mask elements a row in blocks of rows: edges of windows and triangles hold one or two."""


def block_size(keys_per_row: float) -> int:
    """Rows of a tile: small tiles compute fewer hidden pairs, large ones run at a higher rate.

    The kernel works on 32, 64 or 256 rows at a time for tiles of less than 192, less than 768, or more rows.
    """
    if keys_per_row <= 320:
        return 64
    return 192 if keys_per_row <= 1024 else 256


def laid_out(pattern: Pattern, q_at: Tokens, k_at: Tokens) -> tuple[Layout, int]:
    """The layout at the size of tile that suits its rows, and that size."""
    block = block_size(pattern.layout(q_at, k_at).pairs / max(1, q_at.length))
    return pattern.layout(q_at, k_at, block=block), block


def scattered(pattern: Pattern, q_at: Tokens, k_at: Tokens) -> str | None:
    """Why the tiles of one head's pattern would be many small pieces or hold a mask of N × M; or None.

    Tiles that look alike from where they stand share their mask, unless what they hide follows from tensors
    or from a predicate. Cost: that of the layout.
    """
    layout, block = laid_out(pattern, q_at, k_at)
    parts = sum(len(tile.parts) for tile in layout.tiles)
    if parts > max(FEW_PARTS, layout.rows // ROWS_PER_PART):
        return f"its pairs lie scattered: {parts} parts of tiles for {layout.rows} queries"
    held = _held(layout, shared=not (pattern.bound_parts or pattern.opaque_parts))
    most = HELD * block * max(layout.rows, layout.keys)
    if held > most:
        return (
            f"its pairs lie scattered: masks of {held} elements for {layout.rows} × {layout.keys} pairs "
            f"(at most {most})"
        )
    return None


def _held(layout: Layout, *, shared: bool) -> int:
    """Elements of the masks that the tiles need, but for triangles (a block a row at most)."""
    total = 0
    known: set[tuple[int, tuple[tuple[int, int], ...]]] = set()
    for tile in layout.tiles:
        hidden = _hidden(tile)
        form = (tile.q1 - tile.q0, tuple((low - tile.q0, high - tile.q0) for low, high in hidden))
        if form not in known:
            total += (tile.q1 - tile.q0) * sum(high - low for low, high in hidden)
        if shared:
            known.add(form)
    return total


def _hidden(tile: Tile) -> list[tuple[int, int]]:
    """Ranges of keys of which a mask is held: partial parts, and the gaps that are computed."""
    ranges = [(part.k0, part.k1) for part in tile.parts if part.kind == "partial"]
    between = zip(tile.parts, tile.parts[1:], strict=False)
    return ranges + [(one.k1, two.k0) for one, two in between if 0 < two.k0 - one.k1 <= GAP]
