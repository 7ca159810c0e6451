"""Small multigraphs with marked ("red") vertices: the indices of equivariant polynomials.

Source: Puny et al. 2023, arXiv 2302.11556. Legend: m vertices, t edges.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations, permutations

__all__ = ["Motif", "clique", "cycle", "motifs", "path"]

Ends = tuple[int, int]


@dataclass(frozen=True)
class Motif:
    """A multigraph on vertices 0 .. m - 1, of which some are red: the axes of its polynomial's value.

    vertices: m. edges: (r, s) each, parallel ones and loops allowed; factors X[j_r, j_s] of the polynomial.
    red: none (a number for a graph), one vertex (a number for every node) or two (for every pair of nodes).
    directed: whether (r, s) differs from (s, r); if not, X has to be symmetric. Two motifs are equal if they
    are written the same; `canonical` is equal for isomorphic ones.

    ValueError: ends or red vertices that are no vertices, more than two red ones.
    """

    vertices: int
    edges: tuple[Ends, ...]
    red: tuple[int, ...] = ()
    directed: bool = False

    def __post_init__(self) -> None:
        edges = tuple((int(a), int(b)) for a, b in self.edges)
        if not self.directed:
            edges = tuple((min(edge), max(edge)) for edge in edges)
        object.__setattr__(self, "edges", tuple(sorted(edges)))
        object.__setattr__(self, "red", tuple(self.red))
        for vertex in (*(end for edge in edges for end in edge), *self.red):
            if not 0 <= vertex < self.vertices:
                raise ValueError(f"motif: vertex {vertex} is none of 0 .. {self.vertices - 1}")
        if len(self.red) > 2 or len(set(self.red)) < len(self.red):
            raise ValueError(f"motif: red must be none, one or two different vertices, got {self.red}")

    @property
    def degree(self) -> int:
        """t, the degree of the polynomial."""
        return len(self.edges)

    def rooted(self, *red: int) -> "Motif":
        """The same multigraph with these red vertices."""
        return Motif(self.vertices, self.edges, red, self.directed)

    @cached_property
    def neighbours(self) -> tuple[frozenset[int], ...]:
        """The other ends of each vertex's edges, loops left out."""
        found: list[set[int]] = [set() for _ in range(self.vertices)]
        for a, b in self.edges:
            if a != b:
                found[a].add(b)
                found[b].add(a)
        return tuple(frozenset(one) for one in found)

    @cached_property
    def components(self) -> tuple[tuple[int, ...], ...]:
        """The vertices of each connected component."""
        left, found = set(range(self.vertices)), []
        while left:
            group, new = set(), {min(left)}
            while new:
                group |= new
                new = {u for v in new for u in self.neighbours[v]} - group
            left -= group
            found.append(tuple(sorted(group)))
        return tuple(found)

    def part(self, vertices: Sequence[int]) -> "Motif":
        """The motif on some of its vertices, numbered in their order; red ones in the motif's order."""
        name = {old: place for place, old in enumerate(vertices)}
        edges = tuple((name[a], name[b]) for a, b in self.edges if a in name and b in name)
        return Motif(len(name), edges, tuple(name[v] for v in self.red if v in name), self.directed)

    @property
    def connected(self) -> bool:
        """Whether every vertex is joined to every other one (the empty motif is not)."""
        return len(self.components) == 1

    @property
    def simple(self) -> bool:
        """No loops and no parallel edges."""
        return all(a != b for a, b in self.edges) and len(set(self.edges)) == len(self.edges)

    def renamed(self, name: Sequence[int], vertices: int | None = None) -> "Motif":
        """Vertex v becomes name[v]; several may become one (of `vertices` in all)."""
        edges = tuple((name[a], name[b]) for a, b in self.edges)
        count = self.vertices if vertices is None else vertices
        return Motif(count, edges, tuple(name[v] for v in self.red), self.directed)

    @cached_property
    def parts(self) -> tuple["Motif", ...]:
        """The motif's connected components, each with the red vertices that it holds."""
        left, found = set(range(self.vertices)), []
        while left:
            group, new = set(), [min(left)]
            while new:
                group.add(new[-1])
                new = [v for v in self.neighbours[new.pop()] if v not in group and v not in new] + new
            left -= group
            name = {old: place for place, old in enumerate(sorted(group))}
            edges = tuple((name[a], name[b]) for a, b in self.edges if a in group)
            red = tuple(name[v] for v in self.red if v in group)
            found.append(Motif(len(group), edges, red, self.directed))
        return tuple(found)

    @cached_property
    def canonical(self) -> "Motif":
        """One motif for all that are isomorphic by a map that keeps each red vertex."""
        return _canonical(self)

    @cached_property
    def automorphisms(self) -> int:
        """How many maps of the motif to itself keep edges and each red vertex."""
        own, free = sorted(self.edges), [v for v in range(self.vertices) if v not in self.red]
        found = 0
        for order in permutations(free):
            name = list(range(self.vertices))
            for old, new in zip(free, order, strict=True):
                name[old] = new
            found += sorted(self.renamed(name).edges) == own
        return found

    def __str__(self) -> str:
        edges = " ".join(f"{a}-{b}" if not self.directed else f"{a}>{b}" for a, b in self.edges)
        red = f" at {', '.join(map(str, self.red))}" if self.red else ""
        return f"[{edges}]{red}"


def _colours(motif: Motif, first: list[int]) -> list[int]:
    """Refined until stable: a vertex is known by its colour and those along its edges, with directions."""
    colours = first
    while True:
        signs = []
        for v in range(motif.vertices):
            around = []
            for a, b in motif.edges:
                if a == b == v:
                    around.append((2, colours[v]))
                elif a == v:
                    around.append((0, colours[b]))
                elif b == v:
                    around.append((int(motif.directed), colours[a]))
            signs.append((colours[v], sorted(around)))
        names = {sign: place for place, sign in enumerate(sorted({repr(sign) for sign in signs}))}
        found = [names[repr(sign)] for sign in signs]
        if len(set(found)) == len(set(colours)):
            return found
        colours = found


@cache
def _canonical(motif: Motif) -> Motif:
    first = [len(motif.red)] * motif.vertices
    for place, vertex in enumerate(motif.red):
        first[vertex] = place
    return min(_leaves(motif, _colours(motif, first)), key=lambda one: (one.edges, one.red))


def _leaves(motif: Motif, colours: list[int]) -> Iterator[Motif]:
    """The motif renamed by every colouring that tells vertices apart: one singled out at a time."""
    classes = sorted(set(colours))
    many = [c for c in classes if colours.count(c) > 1]
    if not many:
        place = {c: i for i, c in enumerate(classes)}
        yield motif.renamed([place[c] for c in colours])
        return
    for vertex in range(motif.vertices):
        if colours[vertex] == many[0]:
            split = [2 * c + (c > many[0] or (c == many[0] and v != vertex)) for v, c in enumerate(colours)]
            yield from _leaves(motif, _colours(motif, split))


def path(edges: int, *red: int) -> Motif:
    """0 - 1 - ... - edges."""
    return Motif(edges + 1, tuple((v, v + 1) for v in range(edges)), red)


def cycle(size: int, *red: int) -> Motif:
    """0 - 1 - ... - 0; of 3 vertices a triangle."""
    if size < 3:
        raise ValueError(f"cycle: size must be at least 3, got {size}")
    return Motif(size, tuple((v, (v + 1) % size) for v in range(size)), red)


def clique(size: int, *red: int) -> Motif:
    """Every two of `size` vertices joined."""
    return Motif(size, tuple(combinations(range(size), 2)), red)


def motifs(
    edges: int, *, red: int = 0, simple: bool = True, connected: bool = True, directed: bool = False
) -> tuple[Motif, ...]:
    """All motifs of at most `edges` edges without isolated free vertices, up to isomorphism, fewest first.

    red: how many red vertices (0 .. 2), which may stand alone where connected=False. simple: without loops
    and parallel edges. Connected ones are enough as features: the others are products of those of their
    parts. Two red vertices count as joined. Cost: grows fast; 6 edges take about a second.
    """
    if edges < 1 or not 0 <= red <= 2:
        raise ValueError(f"motifs: edges must be at least 1 and red 0, 1 or 2, got {edges} and {red}")
    found = []
    level: set[Motif] = {Motif(red, (), tuple(range(red)), directed)}
    for _ in range(edges):
        level = {
            grown.canonical
            for motif in level
            for grown in _grown(motif, joined=connected)
            if not simple or grown.simple
        }
        found += sorted(level, key=lambda one: (one.vertices, one.edges))
    return tuple(found)


def _grown(motif: Motif, joined: bool) -> Iterator[Motif]:
    """With one edge more; joined: it has a vertex that is there already, if there is any."""
    m = motif.vertices
    for a in range(m + 1):
        for b in range(m + 2):
            if b == m + 1 and a < m:  # a second new vertex follows the first
                continue
            new = {v for v in (a, b) if v >= m}
            if joined and m and new and new == {a, b}:
                continue
            if not motif.directed and b < a:
                continue
            yield Motif(m + len(new), (*motif.edges, (a, b)), motif.red, motif.directed)
