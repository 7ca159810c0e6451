"""What the minimal transformer's attention is made of: similarities, and what is carried.

Every matrix multiplies from the right, y = x W; `product` is the one matrix that a single head amounts to.
Source: Bermeitinger et al. 2024, arXiv 2410.13732.
Legend: B batch, N queries, M keys, C width, H heads, D head width (C / H, or C for one head).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "Carried",
    "OneMap",
    "SharedMap",
    "Similarity",
    "TriangularMap",
    "TwoMaps",
    "Untouched",
    "ValueAndOut",
    "ValueMap",
]


class _Maps(nn.Module):
    """Square maps of the width, split into heads."""

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(
                f"{type(self).__name__}: width must be a multiple of heads, got {width} and {heads}"
            )
        self.width, self.heads = width, heads

    @property
    def product(self) -> Float[Tensor, "C C"]:
        """The one matrix that a single head amounts to."""
        raise NotImplementedError

    def _linear(self) -> nn.Linear:
        return nn.Linear(self.width, self.width, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Similarity(_Maps):
    """Makes queries and keys. keeps_input: the keys are the tokens; symmetric: queries are made like keys."""

    keeps_input = symmetric = False

    def query(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B H N D"]:
        """Queries of the receivers."""
        raise NotImplementedError

    def key(self, x: Float[Tensor, "B M C"]) -> Float[Tensor, "B H M D"]:
        """Keys of the senders."""
        raise NotImplementedError


class Carried(_Maps):
    """Makes values, and the output of what was gathered. keeps_input: the values are the tokens."""

    keeps_input = False

    def value(self, x: Float[Tensor, "B M C"]) -> Float[Tensor, "B H M D"]:
        """What the senders give."""
        raise NotImplementedError

    def out(self, found: Float[Tensor, "B H N D"]) -> Float[Tensor, "B N C"]:
        """The output of the gathered values."""
        raise NotImplementedError


class TwoMaps(Similarity):
    """queries x W_Q, keys x W_K: 2 C^2 parameters, any number of heads."""

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__(width, heads)
        self.query_map, self.key_map = self._linear(), self._linear()

    @property
    def product(self) -> Float[Tensor, "C C"]:
        """W_Q W_K^T."""
        return self.query_map.weight.mT @ self.key_map.weight

    def query(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B H N D"]:
        return self._split(self.query_map(x))

    def key(self, x: Float[Tensor, "B M C"]) -> Float[Tensor, "B H M D"]:
        return self._split(self.key_map(x))


class OneMap(Similarity):
    """queries x W_QK, keys x (W_K = I): C^2 parameters, one head.

    For H heads a W_QK of C^2 each would replace 2 C^2 / H of W_Q and W_K: more, not fewer.
    """

    keeps_input = True

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.map = self._linear()

    @property
    def product(self) -> Float[Tensor, "C C"]:
        """W_QK."""
        return self.map.weight.mT

    def query(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B 1 N C"]:
        return self.map(x)[:, None]

    def key(self, x: Float[Tensor, "B M C"]) -> Float[Tensor, "B 1 M C"]:
        return x[:, None]


class SharedMap(Similarity):
    """queries and keys x W (W_K := W_Q): C^2 parameters, any number of heads; logit_ij = logit_ji."""

    symmetric = True

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__(width, heads)
        self.map = self._linear()

    @property
    def product(self) -> Float[Tensor, "C C"]:
        """W W^T."""
        return self.map.weight.mT @ self.map.weight

    def query(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B H N D"]:
        return self._split(self.map(x))

    key = query


class TriangularMap(Similarity):
    """queries and keys x T, T lower triangular: C (C + 1) / 2 parameters, one head.

    W_QK = T T^T is symmetric and positive semi-definite: no token is unlike itself. The entries start as
    those of a linear layer do.
    """

    symmetric = True
    rows: Tensor
    columns: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        bound = width**-0.5
        self.entries = nn.Parameter(torch.empty(width * (width + 1) // 2).uniform_(-bound, bound))
        rows, columns = torch.tril_indices(width, width)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    @property
    def triangle(self) -> Float[Tensor, "C C"]:
        """T."""
        empty = self.entries.new_zeros(self.width, self.width)
        return empty.index_put((self.rows, self.columns), self.entries)

    @property
    def product(self) -> Float[Tensor, "C C"]:
        """T T^T."""
        return self.triangle @ self.triangle.mT

    def query(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B 1 N C"]:
        return (x @ self.triangle)[:, None]

    key = query


class ValueAndOut(Carried):
    """values x W_V, output by W_O: 2 C^2 parameters, any number of heads."""

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__(width, heads)
        self.value_map, self.out_map = self._linear(), self._linear()

    @property
    def product(self) -> Float[Tensor, "C C"]:
        """W_V W_O."""
        return (self.out_map.weight @ self.value_map.weight).mT

    def value(self, x: Float[Tensor, "B M C"]) -> Float[Tensor, "B H M D"]:
        return self._split(self.value_map(x))

    def out(self, found: Float[Tensor, "B H N D"]) -> Float[Tensor, "B N C"]:
        return self.out_map(found.transpose(1, 2).flatten(2))


class Untouched(Carried):
    """W_V = W_O = I: no parameters, one head; every output is a convex combination of the tokens."""

    keeps_input = True
    like: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        # Nothing else here knows the type and the device of the model.
        self.register_buffer("like", torch.empty(0), persistent=False)

    @property
    def product(self) -> Float[Tensor, "C C"]:
        """I."""
        return torch.eye(self.width, dtype=self.like.dtype, device=self.like.device)

    def value(self, x: Float[Tensor, "B M C"]) -> Float[Tensor, "B 1 M C"]:
        return x[:, None]

    def out(self, found: Float[Tensor, "B 1 N C"]) -> Float[Tensor, "B N C"]:
        return found[:, 0]


class ValueMap(Untouched):
    """values are the tokens, output by W_VO: C^2 parameters, one head."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.map = self._linear()

    @property
    def product(self) -> Float[Tensor, "C C"]:
        """W_VO."""
        return self.map.weight.mT

    def out(self, found: Float[Tensor, "B 1 N C"]) -> Float[Tensor, "B N C"]:
        return self.map(found[:, 0])
