"""Compiled loops that draw neighbours. Every draw is a hash of (seed, node, number of the draw).

So nothing depends on the order in which nodes are taken, or on the number of threads.
"""

from typing import no_type_check

import numpy as np

from attlas._common.loops import jit

__all__ = ["draw_hops", "expand", "key_of", "within"]

# splitmix64 (Steele, Lea and Flood 2014): a counter times a fixed odd number, mixed.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11 = (np.uint64(bits) for bits in (30, 27, 31, 11))
_UNIT = 2.0**-53
MANY = 32
"""Draws above which equal ones are avoided by one pass over the row."""
TRIES = 50


@jit
@no_type_check
def _mixed(z):
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


@jit
@no_type_check
def key_of(seed, node):
    """Where the stream of draws of a node begins."""
    return _mixed(_mixed(np.uint64(seed) + _STEP) + np.uint64(node) * _STEP)


@jit
@no_type_check
def within(key, draw, count):
    """A whole number in 0 .. count - 1."""
    bits = _mixed(key + np.uint64(draw + 1) * _STEP)
    return min(np.int64((bits >> _11) * _UNIT * count), np.int64(count - 1))


@jit
@no_type_check
def _common_neighbours(pointer, other, one, two):
    """How many neighbours two nodes share; rows rise."""
    if pointer[one + 1] - pointer[one] > pointer[two + 1] - pointer[two]:
        one, two = two, one
    row = other[pointer[two] : pointer[two + 1]]
    found = 0
    for at in range(pointer[one], pointer[one + 1]):
        place = np.searchsorted(row, other[at])
        if place < len(row) and row[place] == other[at]:
            found += 1
    return found


@jit
@no_type_check
def _listed(pointer, other, node, hops, seen, found):
    """N1 ++ N2 ++ ... of a node into `found`, each hop's nodes once; how many. seen: bits, all 0."""
    count = 0
    for at in range(pointer[node], pointer[node + 1]):
        found[count] = other[at]
        count += 1
    start = 0
    for _ in range(1, hops):
        stop = count
        for place in range(start, stop):
            j = found[place]
            for at in range(pointer[j], pointer[j + 1]):
                k = other[at]
                word, bit = k >> 5, np.uint32(1) << np.uint32(k & 31)
                if not seen[word] & bit:
                    seen[word] |= bit
                    found[count] = k
                    count += 1
        for place in range(stop, count):
            seen[found[place] >> 5] = 0
        start = stop
    return count


@jit
@no_type_check
def _from_list(found, count, row, key):
    """Fill the row with draws of the list without replacement, or with the list over and over."""
    wanted = len(row)
    if count < wanted:
        for place in range(wanted):
            row[place] = found[place % count]
        return
    for place in range(wanted):
        swap = place + within(key, place, count - place)
        found[place], found[swap] = found[swap], found[place]
        row[place] = found[place]


@jit
@no_type_check
def _from_paths(pointer, other, node, ends, row, chosen, key):
    """Draws of N1 ++ N2 without listing N2; False where that takes too long.

    A neighbour, or the end of a way of two edges, kept with chance 1 / (ways that lead there): every entry of
    the list is then drawn with the same chance. ends: running total of the neighbours' degrees.
    """
    first = pointer[node]
    degree = pointer[node + 1] - first
    every = degree + ends[degree - 1]
    kept, draw = 0, 0
    while kept < len(row):
        if draw > 2 * TRIES * len(row):
            return False
        item = within(key, draw, every)
        draw += 2
        if item < degree:
            k = np.int64(other[first + item])
            code = k
        else:
            way = item - degree
            place = np.searchsorted(ends[:degree], way, side="right")
            j = other[first + place]
            k = np.int64(other[pointer[j + 1] - (ends[place] - way)])
            ways = degree if k == node else _common_neighbours(pointer, other, node, k)
            if ways > 1 and within(key, draw - 1, ways) > 0:
                continue
            code = -1 - k
        known = False
        for place in range(kept):
            known = known or chosen[place] == code
        if not known:
            chosen[kept] = code
            row[kept] = k
            kept += 1
    return True


@jit
@no_type_check
def draw_hops(pointer, other, graphs, nodes, hops, seed, limit, table, first, last):
    """Rows first .. last of the table: draws of N1 ++ N2 ++ ... of each node.

    limit: ways of two edges from a node above which they are drawn, not listed. graphs (G + 1,): where the
    graphs of a batch begin: each draws as it would alone, and a node without neighbours from its own graph.
    """
    total = len(pointer) - 1
    seen = np.zeros((total >> 5) + 1, dtype=np.uint32)
    found = np.empty(total * hops, dtype=np.int32)
    ends = np.empty(total, dtype=np.int64)
    chosen = np.empty(table.shape[1], dtype=np.int64)
    for place in range(first, last):
        node = nodes[place]
        row = table[place]
        own = np.searchsorted(graphs, node, side="right")
        start = graphs[own - 1]
        key = key_of(seed, node - start)
        degree = pointer[node + 1] - pointer[node]
        if degree == 0:
            for at in range(len(row)):
                row[at] = start + within(key, at, graphs[own] - start)
            continue
        if hops == 2:
            ways = 0
            for at in range(degree):
                j = other[pointer[node] + at]
                ways += pointer[j + 1] - pointer[j]
                ends[at] = ways
            if ways > limit and _from_paths(pointer, other, node, ends, row, chosen, key):
                continue
        count = _listed(pointer, other, node, hops, seen, found)
        _from_list(found, count, row, key)


@jit
@no_type_check
def expand(pointer, other, order, nodes, known, start, stop, count, replace, seed, place, ends, edges):
    """One hop: edges into the nodes start .. stop of the list, drawn; (edges, nodes known now).

    count: edges drawn per node, all if negative. nodes: the list, which grows; place: where a node stands in
    it, -1 for none. ends (2, E): places of sender and receiver; edges: the drawn ones in the graph's order.
    """
    found = 0
    for at in range(start, stop):
        node = nodes[at]
        first = pointer[node]
        degree = pointer[node + 1] - first
        if degree == 0:
            continue
        key = key_of(seed, node)
        before = found
        if count < 0 or (degree <= count and not replace):
            for edge in range(degree):
                edges[found] = first + edge
                found += 1
        elif replace:
            for draw in range(count):
                edges[found] = first + within(key, draw, degree)
                found += 1
        elif count <= MANY:  # Floyd: each new number once, of a row that may be long
            for draw in range(count):
                top = degree - count + draw
                edge = first + within(key, draw, top + 1)
                for other_draw in range(before, found):
                    if edges[other_draw] == edge:
                        edge = first + top
                        break
                edges[found] = edge
                found += 1
        else:
            left = count
            for edge in range(degree):
                if within(key, edge, degree - edge) < left:
                    edges[found] = first + edge
                    found += 1
                    left -= 1
        for edge in range(before, found):
            sender = other[edges[edge]]
            if place[sender] < 0:
                place[sender] = known
                nodes[known] = sender
                known += 1
            ends[0, edge] = place[sender]
            ends[1, edge] = at
            edges[edge] = order[edges[edge]]
    return found, known
