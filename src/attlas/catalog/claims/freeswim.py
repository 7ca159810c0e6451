"""FreeSwim's claim: above its trained size a denoiser does better in a window that slides inward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor

    from attlas.models import VideoDenoiser
    from attlas.serve import FreeSwim

__all__ = ["CLAIM", "judge", "measure"]

PATCH, SIDE, LARGE, THUMBNAIL = 4, 16, 48, 4
STEPS, BATCH, LONG_STEPS = 400, 8, 3000
CROPS, LEVELS, DENOISING, CACHED = 4, (0.3, 0.5, 0.7, 0.9), 10, 5
LEARNT, NEAR = 3.0, 0.2
NAMES = ("full", "truncated", "inward", "override", "cached")
MEASURES = ("PSNR", "thumbnail error", "repetition")
SETTINGS = {
    "model": f"3 layers, width 64, 2 heads, patches of {PATCH} pixels, condition: {THUMBNAIL} x {THUMBNAIL} "
    "mean colours",
    "training": f"{STEPS} steps of {BATCH} crops of {SIDE} x {SIDE} tokens ({LONG_STEPS} with --long)",
    "test": f"{CROPS} crops of {LARGE} x {LARGE} tokens (16 with --long), noise levels {LEVELS}, "
    f"{DENOISING} steps down to 0, cache of {CACHED} steps",
    "data": "random crops of scikit-learn's two sample photographs, the test's of the same two as the "
    "training's",
}


def crops(side: int, count: int, seed: int) -> Tensor:
    """Frames (count, 3, 1, pixels, pixels) in -1 .. 1 of side x side tokens."""
    import torch

    from attlas.tasks import photo_crops

    generator = torch.Generator().manual_seed(seed)
    return photo_crops(side * PATCH, side * PATCH, count, generator)[:, :, None] * 2 - 1


def thumbnail(frames: Tensor) -> Tensor:
    """Mean colours of a grid of cells as condition tokens, (count, cells, 3)."""
    from torch.nn import functional

    return functional.adaptive_avg_pool2d(frames[:, :, 0], THUMBNAIL).flatten(2).transpose(1, 2)


def trained(seed: int, steps: int, step: Step) -> VideoDenoiser:
    """A denoiser that has seen crops of SIDE x SIDE tokens only."""
    import torch
    from torch.nn import functional

    from attlas.models import VideoDenoiser
    from attlas.train import Recipe, fit

    torch.manual_seed(seed)
    net = VideoDenoiser(patch=PATCH)
    generator = torch.Generator().manual_seed(seed)

    def loss(model: torch.nn.Module, frames: Tensor) -> Tensor:
        noise = torch.randn(frames.shape, generator=generator)
        level = torch.rand(len(frames), generator=generator)
        share = level.view(-1, 1, 1, 1, 1)
        found = model((1 - share) * frames + share * noise, level, thumbnail(frames))
        return functional.mse_loss(found, noise - frames)

    batches = (crops(SIDE, BATCH, seed * 100_000 + number) for number in range(steps))
    fit(net, batches, loss, Recipe(steps, learning_rate=2e-3, weight_decay=0.0), step=step)
    return net


def variants(net: VideoDenoiser) -> dict[str, FreeSwim]:
    """How each variant serves; in full attention the "window" is everything."""
    from attlas.pattern import along, dense
    from attlas.serve import FreeSwim

    released = FreeSwim.trained_at(SIDE, SIDE, net.width // net.heads, cache_steps=None)
    size = 2 * (SIDE // 2) + 1
    cut = along("H", size, border="mask") & along("W", size, border="mask")
    return {
        "full": FreeSwim(dense(), None, None, 0),
        "truncated": FreeSwim(cut, released.scale, None, 0),
        "inward": FreeSwim(released.window, released.scale, None, 0),
        "override": released,
        "cached": FreeSwim(released.window, released.scale, CACHED),
    }


def denoised(
    net: VideoDenoiser, how: FreeSwim, frames: Tensor, level: float, seed: int
) -> tuple[Any, Tensor]:
    """(what `swim` gives from one noise level, the noisy frames)."""
    import torch

    from attlas.serve import renoised, swim

    start = renoised(frames, level, torch.Generator().manual_seed(seed))
    noises = [level * (1 - done / DENOISING) for done in range(DENOISING + 1)]
    with torch.no_grad():
        return swim(net, start, noises, thumbnail(frames), how), start


def psnr(found: Tensor, frames: Tensor) -> float:
    """Mean over the frames, in dB, of colours in 0 .. 1."""
    error = (found.clamp(-1, 1) - frames).div(2).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean())


def repetition(frames: Tensor) -> float:
    """Largest autocorrelation of the grey picture at a shift of at least half a trained side, mean."""
    import torch

    grey = frames[:, :, 0].mean(1)
    grey = grey - grey.mean((1, 2), keepdim=True)
    power = torch.fft.rfft2(grey).abs().square()
    same = torch.fft.irfft2(power, s=grey.shape[1:])
    same = same / same[:, :1, :1].clamp_min(1e-12)
    shift = torch.arange(grey.shape[1])
    shift = torch.minimum(shift, grey.shape[1] - shift)
    far = torch.maximum(shift[:, None], shift) >= SIDE * PATCH // 2
    return float(same[:, far].amax(1).mean())


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """One denoiser, served in five ways."""
    return remember(folder, "denoiser", lambda: _values(seed, long, step))


def _values(seed: int, long: bool, step: Step) -> Values:
    net = trained(seed, LONG_STEPS if long else STEPS, step)
    count, first = 16 if long else CROPS, seed + 10_000_000
    small, large = crops(SIDE, count, first), crops(LARGE, count, first)
    found: dict[str, float] = {f"{what}, {name}": 0.0 for name in NAMES for what in MEASURES}
    found |= {f"full calls, {name}": 0.0 for name in NAMES}
    found |= {"repetition, photographs": repetition(large), "trained size gain": 0.0}
    for name, how in variants(net).items():
        for number, level in enumerate(LEVELS):
            step(f"{name} from noise level {level}")
            swum, _ = denoised(net, how, large, level, first + number)
            calls = swum.full_calls if name != "full" else DENOISING * len(net.layers)
            error = (thumbnail(swum.frames.clamp(-1, 1)) - thumbnail(large)).abs().mean() / 2
            for what, value in zip(
                MEASURES, (psnr(swum.frames, large), float(error), repetition(swum.frames)), strict=True
            ):
                found[f"{what}, {name}"] += value / len(LEVELS)
            found[f"full calls, {name}"] += calls / len(LEVELS)
            if name == "full":
                swum, noisy = denoised(net, how, small, level, first + number)
                gain = psnr(swum.frames, small) - psnr(noisy, small)
                found["trained size gain"] += gain / len(LEVELS)
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)

    def mean(what: str, name: str) -> float:
        return table[f"{what}, {name}"]["mean"]

    quality = {name: mean("PSNR", name) for name in NAMES}
    measured = _told(table)
    if table["trained size gain"]["mean"] < LEARNT:
        return Verdict("not shown at this scale", f"The denoiser has learnt too little: {measured}")
    error = {name: mean("thumbnail error", name) for name in NAMES}
    calls = {name: mean("full calls", name) for name in NAMES}
    rules = {
        "inward at least truncated": quality["inward"] >= quality["truncated"],
        "truncated above full": quality["truncated"] > quality["full"],
        "mean colours nearer with the override": error["override"] < error["inward"],
        f"cached within {NEAR} dB of the override": abs(quality["cached"] - quality["override"]) <= NEAR,
        f"{CACHED} times fewer full calls": calls["cached"] * CACHED <= calls["override"],
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, Any]]) -> str:
    def row(what: str, digits: int) -> str:
        rows = {name: table[f"{what}, {name}"] for name in NAMES}
        return ", ".join(
            f"{name} {one['mean']:.{digits}f} ± {one['sd']:.{digits}f}" for name, one in rows.items()
        )

    calls = ", ".join(f"{name} {table[f'full calls, {name}']['mean']:.0f}" for name in NAMES)
    return (
        f"PSNR in dB at {LARGE} x {LARGE} tokens: {row('PSNR', 2)}. Error of mean colours: "
        f"{row('thumbnail error', 4)}. Autocorrelation peak: {row('repetition', 3)}, of the photographs "
        f"{table['repetition, photographs']['mean']:.3f}. Calls of full self-attention: {calls}. At the "
        f"trained size denoising gains {table['trained size gain']['mean']:.1f} dB."
    )


CLAIM = Claim(
    says=(
        "Without training, a video model works at resolutions that it was not trained for: an inward window "
        "keeps detail where full attention and a cut-off window fail, the cross-attention output of full "
        "attention keeps the whole coherent, and caching it for some steps costs no quality."
    ),
    rule=(
        f"A denoiser trained on {SIDE} x {SIDE} tokens, at {LARGE} x {LARGE}; means over seeds, crops and "
        "noise levels. PSNR: inward at least truncated, truncated above full. The error of the mean colours "
        f"is smaller with the override than without. Cached every {CACHED} steps: within {NEAR} dB of the "
        f"uncached override, at {CACHED} times fewer calls of full attention. Nothing is shown where "
        f"denoising at the trained size gains less than {LEARNT} dB."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
