"""Compiled loops over who is joined with whom: adjacency in both directions, and averages over it."""

from typing import no_type_check

import numpy as np

from attlas._common.loops import jit

__all__ = ["average", "join", "partition"]


@jit
@no_type_check
def partition(sender, receiver, shift, cursor, row, other):
    """Both directions of every edge, loops left out, by ranges of 2^shift rows. cursor: where they begin."""
    for edge in range(len(sender)):
        one, two = sender[edge], receiver[edge]
        if one != two:
            at = cursor[one >> shift]
            cursor[one >> shift] = at + 1
            row[at], other[at] = one, two
            at = cursor[two >> shift]
            cursor[two >> shift] = at + 1
            row[at], other[at] = two, one


@jit
@no_type_check
def join(starts, shift, row, other, degree, first, last):
    """In ranges first .. last: rows together and rising, equal neighbours once, at the range's beginning.

    A range fits in a core's cache, so that its rows are filled at random without waiting for memory.
    """
    cursor = np.empty((1 << shift) + 1, dtype=np.int64)
    for part in range(first, last):
        begin, end = starts[part], starts[part + 1]
        base = part << shift
        cursor[:] = 0
        for at in range(begin, end):
            cursor[row[at] - base + 1] += 1
        for place in range(1 << shift):
            cursor[place + 1] += cursor[place]
        rows = np.empty(end - begin, dtype=np.int32)
        for at in range(begin, end):
            place = row[at] - base
            rows[cursor[place]] = other[at]
            cursor[place] += 1
        kept, start = begin, 0
        for place in range(min(1 << shift, len(degree) - base)):
            stop = cursor[place]
            mine = np.sort(rows[start:stop])
            before, found = -1, kept
            for k in mine:
                if k != before:
                    other[kept] = before = k
                    kept += 1
            degree[base + place] = kept - found
            start = stop


@jit
@no_type_check
def average(pointer, other, root, x, out, first, last):
    """out_i = r_i (r_i x_i + sum of r_j x_j over the neighbours j), for nodes first .. last."""
    width = x.shape[1]
    for node in range(first, last):
        row = out[node]
        own = root[node]
        for c in range(width):
            row[c] = own * x[node, c]
        for at in range(pointer[node], pointer[node + 1]):
            j = other[at]
            factor = root[j]
            for c in range(width):
                row[c] += factor * x[j, c]
        for c in range(width):
            row[c] *= own
