"""What a piece of code allocates, counted tensor by tensor: no clock and no process statistics."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Allocations", "allocations"]


class Allocations(TorchDispatchMode):
    """`largest`: numbers of the largest new tensor; `peak`: bytes of new tensors alive at the worst moment.

    Sees what torch's operators return, forward and backward; not what a kernel holds inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        old = {leaf.untyped_storage()._cdata for leaf in given}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in old:
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        number, size = storage._cdata, storage.nbytes()
        if number in self._known:
            return
        self._known.add(number)
        self.largest = max(self.largest, size // tensor.itemsize)
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._gone, number, size)

    def _gone(self, number: int, size: int) -> None:
        self._known.discard(number)
        self._live -= size


def allocations(run: Callable[[], Any]) -> Allocations:
    """What one call allocates."""
    with Allocations() as found:
        run()
    return found
