"""Compiled loops that walk from every node and collect what they visit.

A step is a hash of (seed, stream, node, number of the step): it does not depend on the other nodes.
"""

from typing import no_type_check

import numpy as np

from attlas._common.loops import jit

__all__ = ["fill_edges", "fill_sets", "size_edges", "size_sets"]

# splitmix64 (Steele, Lea and Flood 2014): a counter times a fixed odd number, mixed.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11 = (np.uint64(bits) for bits in (30, 27, 31, 11))
_UNIT = 2.0**-53


@jit
@no_type_check
def _mixed(z):
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


@jit
@no_type_check
def _visited(pointer, other, node, key, token, walks, length, most, mark, stamp, found):
    """Nodes that `walks` walks of `length` steps from a node visit, rising, into `found`; how many."""
    found[0], mark[node], count = node, stamp, 1
    for walk in range(walks):
        at = node
        for step in range(length):
            degree = pointer[at + 1] - pointer[at]
            if degree == 0:
                break
            draw = (token * walks + walk) * most + step
            bits = _mixed(key + np.uint64(draw + 1) * _STEP)
            at = other[pointer[at] + min(np.int64((bits >> _11) * _UNIT * degree), degree - 1)]
            if mark[at] == stamp:
                continue
            mark[at] = stamp
            place = count
            while place > 0 and found[place - 1] > at:
                found[place] = found[place - 1]
                place -= 1
            found[place] = at
            count += 1
    return count


@jit
@no_type_check
def _key(seed, stream, own):
    return _mixed(_mixed(_mixed(seed + _STEP) + np.uint64(stream) * _STEP) + np.uint64(own) * _STEP)


@jit
@no_type_check
def size_sets(pointer, other, own, stream, seed, walks, most, repeats, sizes):
    """sizes (n, K): nodes of every token; K = repeats most + 1 tokens, the longest walks first."""
    mark = np.full(len(own), -1, np.int64)
    found = np.empty(min(walks * most + 1, len(own)), np.int64)
    tokens = repeats * most + 1
    for node in range(len(own)):
        key = _key(seed, stream[node], own[node])
        for token in range(tokens):
            length = most - token // repeats
            sizes[node, token] = _visited(
                pointer, other, node, key, token, walks, length, most, mark, node * tokens + token, found
            )


@jit
@no_type_check
def fill_sets(pointer, other, own, stream, seed, walks, most, repeats, starts, nodes):
    """nodes (T,): those of every token, which begin at starts (n K + 1,)."""
    mark = np.full(len(own), -1, np.int64)
    found = np.empty(min(walks * most + 1, len(own)), np.int64)
    tokens = repeats * most + 1
    for node in range(len(own)):
        key = _key(seed, stream[node], own[node])
        for token in range(tokens):
            length, number = most - token // repeats, node * tokens + token
            count = _visited(pointer, other, node, key, token, walks, length, most, mark, number, found)
            nodes[starts[number] : starts[number] + count] = found[:count]


@jit
@no_type_check
def size_edges(pointer, other, count, starts, nodes):
    """How many edges lie within the tokens; `count` nodes in all."""
    mark = np.full(count, -1, np.int64)
    total = 0
    for token in range(len(starts) - 1):
        for at in range(starts[token], starts[token + 1]):
            mark[nodes[at]] = token
        for at in range(starts[token], starts[token + 1]):
            for edge in range(pointer[nodes[at]], pointer[nodes[at] + 1]):
                total += mark[other[edge]] == token
    return total


@jit
@no_type_check
def fill_edges(pointer, other, order, count, starts, nodes, sender, receiver, edges):
    """The edges within the tokens: between which appearances, and which of the graph's edges each one is."""
    mark, place = np.full(count, -1, np.int64), np.empty(count, np.int64)
    total = 0
    for token in range(len(starts) - 1):
        for at in range(starts[token], starts[token + 1]):
            mark[nodes[at]], place[nodes[at]] = token, at
        for at in range(starts[token], starts[token + 1]):
            for edge in range(pointer[nodes[at]], pointer[nodes[at] + 1]):
                if mark[other[edge]] == token:
                    sender[total], receiver[total] = place[other[edge]], at
                    edges[total] = order[edge]
                    total += 1
