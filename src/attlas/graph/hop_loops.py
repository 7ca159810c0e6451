"""Compiled loops over who is joined with whom: adjacency in both directions, and averages over it."""

from typing import no_type_check

from attlas._common.loops import jit

__all__ = ["average", "join", "place", "transpose"]


@jit
@no_type_check
def place(sender, receiver, cursor, other):
    """Both ends of every edge that is no loop, each in the row of the other; cursor: where rows begin."""
    for edge in range(len(sender)):
        one, two = sender[edge], receiver[edge]
        if one != two:
            other[cursor[one]] = two
            cursor[one] += 1
            other[cursor[two]] = one
            cursor[two] += 1


@jit
@no_type_check
def transpose(pointer, other, cursor, turned):
    """The rows of a symmetric adjacency, each in rising order."""
    for node in range(len(pointer) - 1):
        for at in range(pointer[node], pointer[node + 1]):
            row = other[at]
            turned[cursor[row]] = node
            cursor[row] += 1


@jit
@no_type_check
def join(pointer, other):
    """Equal neighbours of rising rows joined, in place; the number that is left."""
    kept, start = 0, 0
    for node in range(len(pointer) - 1):
        stop = pointer[node + 1]
        last = -1
        for at in range(start, stop):
            if other[at] != last:
                last = other[at]
                other[kept] = last
                kept += 1
        pointer[node + 1] = kept
        start = stop
    return kept


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
