"""Profile a model: the attention influence of every head, block by block, at several lengths.

Shapes: L layers, H query heads, G KV heads (H = G * group, consecutive heads share), b blocks of a length.
MoA, arXiv 2406.14909, section 4.2.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from attlas._common.errors import UsageError
from attlas._common.files import check_schema, write_atomic
from attlas.bridges import capture, describe
from attlas.pattern import ModelShape
from attlas.tune.calibrate import response_loss
from attlas.tune.influence import Workspace, block_influence

__all__ = ["Influence", "Item", "Source", "profile"]

Source = Literal["influence", "attention"]
SCHEMA, VERSION = "attlas.influence", 1
_META = "attlas"


@runtime_checkable
class Item(Protocol):
    """What a profile needs to know of an item; `tune.calibrate.CalibrationItem` is one."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids."""

    @property
    def tag(self) -> str:
        """Which kind of item it is; influence is kept apart by tag so that mixes can be formed later."""


@dataclass
class Influence:
    """Sums over items of |E| and of A per 64 x 64 block, by (length, tag); float64 (L, H, b, b).

    Kept as sums, not means, so that a profile that is continued ends in exactly the same numbers.
    `done` are digests of the items in the order in which they were added.
    """

    model: ModelShape
    block: int = 64
    causal: bool = True
    sums: dict[tuple[int, str], dict[Source, Tensor]] = field(default_factory=dict)
    counts: dict[tuple[int, str], int] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Profiled lengths, ascending."""
        return tuple(sorted({length for length, _ in self.counts}))

    def tags(self, length: int) -> tuple[str, ...]:
        """Tags of the items at a length."""
        return tuple(sorted(tag for at, tag in self.counts if at == length))

    def add(self, length: int, tag: str, influence: Tensor, attention: Tensor) -> None:
        """Add one item's block sums, each (L, H, b, b)."""
        place = (length, tag)
        both: dict[Source, Tensor] = {"influence": influence.double(), "attention": attention.double()}
        before = self.sums.get(place)
        self.sums[place] = {name: total + before[name] if before else total for name, total in both.items()}
        self.counts[place] = self.counts.get(place, 0) + 1

    def mean(
        self, length: int, mix: Mapping[str, float] | None = None, *, of: Source = "influence"
    ) -> Float[Tensor, "L H b b"]:
        """Mean over items, float64. `mix` weighs the means of the tags ({"needle": 1, "text": 4}, scaled to
        sum 1); None: every item counts the same. `of`: "influence", or "attention" for the baseline by mean
        weight."""
        tags = self.tags(length)
        if not tags:
            raise ValueError(f"length {length} was not profiled; profiled lengths are {list(self.lengths)}")
        weights = {tag: float(self.counts[length, tag]) for tag in tags} if mix is None else dict(mix)
        wrong = [tag for tag, weight in weights.items() if tag not in tags or weight < 0]
        total = sum(weights.values())
        if wrong or total <= 0:
            raise ValueError(
                f"mix must give weights >= 0, not all 0, to tags among {list(tags)} of length {length}, got "
                f"{mix}"
            )
        parts = [
            self.sums[length, tag][of] * (weight / total / self.counts[length, tag])
            for tag, weight in weights.items()
        ]
        return torch.stack(parts).sum(0)

    def per_kv_head(
        self, length: int, mix: Mapping[str, float] | None = None, *, of: Source = "influence"
    ) -> Float[Tensor, "L G b b"]:
        """`mean`, summed over the consecutive query heads that share a KV head (losses of heads add up)."""
        return self.mean(length, mix, of=of).unflatten(1, (self.model.kv_heads, -1)).sum(2)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write safetensors with JSON metadata, atomically."""
        tensors = {
            f"{length}/{tag}/{name}": tensor.contiguous()
            for (length, tag), both in self.sums.items()
            for name, tensor in both.items()
        }
        meta = {
            "schema": SCHEMA,
            "version": VERSION,
            "model": asdict(self.model),
            "block": self.block,
            "causal": self.causal,
            "counts": [[length, tag, count] for (length, tag), count in self.counts.items()],
            "done": self.done,
        }
        write_atomic(path, save_tensors(tensors, {_META: json.dumps(meta, sort_keys=True)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Influence":
        """Inverse of `save`; UsageError where the file is missing, damaged or of a newer schema."""
        try:
            data = Path(path).read_bytes()
            tensors = load_tensors(data)
            meta = json.loads(_header(data)[_META])
        except FileNotFoundError:
            raise UsageError(f"profile {path} does not exist; check the path") from None
        except OSError as error:
            raise UsageError(f"profile {path} cannot be read: {error.strerror}") from error
        except (SafetensorError, ValueError, KeyError) as error:
            raise UsageError(f"profile {path} is damaged ({error}); delete it and profile again") from error
        meta = check_schema(meta, SCHEMA, VERSION, source=f"profile {path}")
        sources: tuple[Source, ...] = ("influence", "attention")
        try:
            counts = {(int(length), str(tag)): int(count) for length, tag, count in meta["counts"]}
            sums = {
                (length, tag): {name: tensors[f"{length}/{tag}/{name}"] for name in sources}
                for length, tag in counts
            }
            shape = ModelShape(**meta["model"])
            return cls(shape, int(meta["block"]), bool(meta["causal"]), sums, counts, list(meta["done"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"profile {path} is damaged (its contents do not fit together: {error}); delete it and "
                "profile again"
            ) from error


def profile(
    model: nn.Module,
    items: Mapping[int, Sequence[Item]],
    *,
    block: int = 64,
    loss: Callable[[Any, Any], Tensor] = response_loss,
    path: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Influence:
    """Mean |E| per block of every head, from the items of every length N.

    `items[N]`: items of at most N tokens; shorter ones count as right-padded to N. `loss(model, item)`: the
    scalar whose gradient is taken, by default the mean cross-entropy of the model's own answers; for an
    encoder give one that calls the model. One forward and one backward (activations only) per item keep Q, K,
    V and dO; then each layer forms its block sums and is dropped, so that no N x N is ever held.
    A is summed in the same pass, for the baseline that goes by mean attention.

    `path`: the profile is written there after every item and continued from there; the same items in the same
    order give bitwise the same result whether or not it was interrupted. Raises UsageError where `path` holds
    another model's or other items' profile. `progress(done, all)` is called after every item.
    Cost: a training step without weight gradients, and `block_influence` for every layer, per item.
    """
    todo = [(length, item, _digest(length, item)) for length in sorted(items) for item in items[length]]
    _check(todo, block)
    shape = describe(model)
    result = _start(path, shape, block, [digest for _, _, digest in todo])
    report = progress if progress is not None else lambda done, of: None
    report(len(result.done), len(todo))
    work = Workspace()
    with _evaluating(model):
        for length, item, digest in todo[len(result.done) :]:
            blocks = length // block
            influence, attention, causal = _item(model, item, loss, block, blocks, work)
            result.add(length, item.tag, influence, attention)
            result.causal = causal
            result.done.append(digest)
            if path is not None:
                result.save(path)
            report(len(result.done), len(todo))
    return result


def _item(
    model: nn.Module,
    item: Item,
    loss: Callable[[Any, Any], Tensor],
    block: int,
    blocks: int,
    work: Workspace,
) -> tuple[Tensor, Tensor, bool]:
    """Block sums (L, H, blocks, blocks) of |E| and of A for one item."""
    influences, attentions, causal = [], [], True
    with torch.enable_grad(), capture(model) as recording:
        value = loss(model, item)
        if not torch.isfinite(value):
            raise ValueError(
                f"the loss of a {item.tag!r} item is {value.item()}; profile in float32 or bfloat16"
            )
        value.backward()
    with torch.no_grad():
        for layer in recording.drain():
            if layer.grad_output is None:
                raise ValueError(
                    f"layer {layer.layer} got no gradient from loss: return a scalar that depends on the "
                    f"model's output"
                )
            pair = block_influence(
                layer.query[0],
                layer.key[0],
                layer.value[0],
                layer.grad_output[0],
                scale=layer.scaling,
                block=block,
                causal=layer.causal,
                window=layer.window,
                workspace=work,
            )
            missing = blocks - pair[0].shape[-1]
            influence, attention = (nn.functional.pad(part, (0, missing, 0, missing)) for part in pair)
            if not torch.isfinite(influence).all():
                raise ValueError(
                    f"influence of layer {layer.layer} is not finite; profile in float32 or bfloat16"
                )
            influences.append(influence)
            attentions.append(attention)
            causal = layer.causal
    return torch.stack(influences).cpu(), torch.stack(attentions).cpu(), causal


def _start(
    path: str | os.PathLike[str] | None, shape: ModelShape, block: int, digests: list[str]
) -> Influence:
    """The profile at `path` if it belongs to these items, else an empty one."""
    if path is None or not Path(path).exists():
        return Influence(shape, block)
    found = Influence.load(path)
    if found.model.fingerprint != shape.fingerprint:
        raise UsageError(
            f"profile {path} belongs to {found.model.name}, not to {shape.name} with its present weights; "
            f"delete it "
            "or choose another folder"
        )
    if found.block != block or found.done != digests[: len(found.done)]:
        raise UsageError(
            f"profile {path} was made from other items or another block size; delete it or choose another "
            f"folder"
        )
    return found


def _check(todo: list[tuple[int, Item, str]], block: int) -> None:
    if not todo:
        raise ValueError("items must hold at least one item, got none")
    for length, item, _ in todo:
        if length < block or length % block:
            raise ValueError(f"lengths must be multiples of block {block}, got {length}")
        if len(item.ids) > length:
            raise ValueError(
                f"an item of tag {item.tag!r} has {len(item.ids)} tokens, more than its length {length}; "
                f"cut its middle"
            )


def _digest(length: int, item: Item) -> str:
    content = (length, item.tag, tuple(int(token) for token in item.ids), getattr(item, "response", None))
    return hashlib.sha256(repr(content).encode()).hexdigest()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout inside, the model's mode as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _header(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: 8 bytes of length, then JSON."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size])["__metadata__"]
