"""LaMamba-Diff: a U-Net of LaMamba blocks that predicts noise and variance, and a small net of its blocks.

Source: arXiv 2408.02615. Legend: B batch, H x W map of latents or pixels, C width.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from attlas.layers.lamamba import ModulatedBlock, lamamba_block
from attlas.layers.mamba import SelectiveSSM
from attlas.layers.waves import waves

__all__ = ["LaMambaDenoiser", "LaMambaUNet", "PatchExpanding", "PatchMerging", "guided"]

WAVES = 256
STAGES = (1, 2, 4, 4)
"""Widths of the stages over the first one's; the map is halved after the first and after the second."""


class PatchMerging(nn.Module):
    """2 x 2 neighbours side by side, LayerNorm, Linear without bias; zeros stand beyond an odd side."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, out, bias=False)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w D"]:
        """The map at half its sides, rounded up."""
        x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(torch.cat(corners, -1)))


class PatchExpanding(nn.Module):
    """Linear C -> 2 C without bias, of which every token becomes 2 x 2 tokens of C / 2, then LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"patch expanding halves the width: it must be even, got {width}")
        self.expand, self.norm = nn.Linear(width, 2 * width, bias=False), nn.LayerNorm(width // 2)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w D"]:
        """The map at twice its sides."""
        four = self.expand(x).unflatten(-1, (2, 2, -1)).permute(0, 1, 3, 2, 4, 5)
        return self.norm(four.flatten(3, 4).flatten(1, 2))


class _Conditioned(nn.Module):
    """What both nets share: patch 1 with places, the condition, the head."""

    def __init__(
        self, *, channels: int, size: int | tuple[int, int], width: int, condition: int, classes: int
    ) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else size
        if width % 4:
            raise ValueError(f"LaMamba: width must be a multiple of 4 for sin-cos places, got {width}")
        self.classes = classes
        self.patch = nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width))
        self.places = nn.Parameter(_places(*self.size, width))
        self.level = nn.Sequential(nn.Linear(WAVES, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.label = nn.Embedding(classes + 1, condition)
        self.final_project = nn.Linear(condition, width)
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.final_modulation, self.head = nn.Linear(width, 2 * width), nn.Linear(width, 2 * channels)

    def _begin(self) -> None:
        """The released initialisation: Xavier for all projections outside of scans, modulations zero."""
        for module in _outside_scans(self):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (self.label, self.level[0], self.level[2]):
            nn.init.normal_(embedding.weight, std=0.02)  # type: ignore[arg-type]
        nn.init.zeros_(self.final_modulation.weight)
        for module in self.modules():
            if isinstance(module, ModulatedBlock):
                module.begin_as_identity()

    def _entered(self, x: Tensor) -> Tensor:
        if x.shape[2:] != torch.Size(self.size):
            raise ValueError(
                f"LaMamba: x must be {self.size[0]} x {self.size[1]}, as its table of places, got "
                f"{x.shape[2]} x {x.shape[3]}; make a model of that size"
            )
        return self.patch(x.permute(0, 2, 3, 1)) + self.places

    def _condition(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.level(waves(t.float() / 1000.0, WAVES).to(x.dtype)) + self.label(label)

    def _left(self, x: Tensor, condition: Tensor) -> Tensor:
        steered = self.final_modulation(functional.silu(self.final_project(condition)))[:, None, None]
        shift, scale = steered.chunk(2, -1)
        return self.head(self.final_norm(x) * (1 + scale) + shift).permute(0, 3, 1, 2)


class LaMambaDenoiser(_Conditioned):
    """Blocks at one size: (noisy x, step t, label) -> noise and variance logits, 2 x channels.

    Args:
        block: `block(layer)` makes the block of a layer, (B, H, W, width) and a condition of `condition`
            numbers -> the same; default: LaMamba's, windows shifted in every second layer.

    `label` = classes stands for no label. Source: the form of LaMamba-Diff's claim here, of no paper.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        size: int | tuple[int, int] = 16,
        width: int = 32,
        layers: int = 2,
        heads: int = 4,
        window: int = 4,
        classes: int = 10,
        block: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__(channels=channels, size=size, width=width, condition=width, classes=classes)

        def plain(layer: int) -> nn.Module:
            return lamamba_block(width, width, heads=heads, window=window, shift=layer % 2 * (window // 2))

        make = plain if block is None else block
        self.blocks = nn.ModuleList(make(layer) for layer in range(layers))
        self._begin()

    def forward(
        self, x: Float[Tensor, "B K H W"], t: Int[Tensor, " B"], label: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L H W"]:
        """t: 0 .. 999."""
        condition, x = self._condition(x, t, label), self._entered(x)
        for block in self.blocks:
            x = block(x, condition)
        return self._left(x, condition)


class LaMambaUNet(_Conditioned):
    """LaMamba-Diff: encoder of four stages, middle x + mid(x), decoder with added skips.

    Args:
        channels, size: of the latents (4 x 32 x 32 for images of 256 pixels); width: C; stages have C, 2C,
            4C, 4C at the full, half, quarter and quarter size.
        depths, middle: blocks; a stage of the decoder has one more. heads, window, states: of a block.

    Shapes: x (B, channels, H, W), t 0 .. 999 (B,), label (B,), `classes` for no label -> (B, 2 channels, H,
    W): noise and variance logits. Departure: the released code has a further Linear and LayerNorm in front of
    the head. XL: width 320, all other defaults.
    """

    def __init__(
        self,
        *,
        channels: int = 4,
        size: int | tuple[int, int] = 32,
        width: int = 320,
        depths: Sequence[int] = (2, 2, 2, 2),
        middle: int = 2,
        heads: int = 8,
        window: int = 8,
        states: int = 1,
        classes: int = 1000,
    ) -> None:
        if len(depths) != len(STAGES):
            raise ValueError(f"LaMamba: depths must name {len(STAGES)} stages, got {tuple(depths)}")
        widths = [width * factor for factor in STAGES]
        condition = widths[-1]
        super().__init__(channels=channels, size=size, width=width, condition=condition, classes=classes)

        def stage(of: int, depth: int, project: bool) -> nn.ModuleList:
            return nn.ModuleList(
                lamamba_block(
                    of,
                    condition,
                    heads=heads,
                    window=window,
                    shift=layer % 2 * (window // 2),
                    states=states,
                    project=project,
                )
                for layer in range(depth)
            )

        self.down = nn.ModuleList(stage(of, depth, False) for of, depth in zip(widths, depths, strict=True))
        self.merge = nn.ModuleList(PatchMerging(widths[k], widths[k + 1]) for k in range(2))
        self.middle = stage(condition, middle, False)
        self.up = nn.ModuleList(
            stage(of, depth + 1, True) for of, depth in zip(widths[::-1], reversed(depths), strict=True)
        )
        self.expand = nn.ModuleList(PatchExpanding(widths[k]) for k in (2, 1))
        self._begin()

    def forward(
        self, x: Float[Tensor, "B K H W"], t: Int[Tensor, " B"], label: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L H W"]:
        """Noise and variance logits."""
        condition, x = self._condition(x, t, label), self._entered(x)
        skips = []
        for k, blocks in enumerate(self.down):
            x = _through(blocks, x, condition)
            skips.append(x)
            if k < len(self.merge):
                x = self.merge[k](x)
        x = x + _through(self.middle, x, condition)
        for k, blocks in enumerate(self.up):
            skip = skips.pop()
            if k >= 2:
                # An odd side was padded when it was halved.
                x = self.expand[k - 2](x)[:, : skip.shape[1], : skip.shape[2]]
            x = _through(blocks, x + skip, condition)
        return self._left(x, condition)


def guided(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    t: Tensor,
    label: Tensor,
    scale: float,
    *,
    classes: int,
) -> Float[Tensor, "B L H W"]:
    """Classifier-free guidance: noise e_0 + scale (e_label - e_0) in all channels; the label's variance."""
    both = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([label, torch.full_like(label, classes)]))
    named, free = both.chunk(2)
    noise, variance = named.chunk(2, 1)
    without = free.chunk(2, 1)[0]
    return torch.cat([without + scale * (noise - without), variance], 1)


def _through(blocks: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
    for block in blocks.children():
        x = block(x, condition)
    return x


def _outside_scans(module: nn.Module) -> Iterable[nn.Module]:
    for child in module.children():
        if not isinstance(child, SelectiveSSM):
            yield child
            yield from _outside_scans(child)


def _places(height: int, width: int, channels: int) -> Tensor:
    """Sines and cosines of the column, then of the row, at rates from 1 down to 1/10000: (H, W, channels)."""
    rates = 1e4 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    parts = []
    for at in (
        torch.arange(width).expand(height, width),
        torch.arange(height)[:, None].expand(height, width),
    ):
        angle = at[..., None] * rates
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, -1).float()
