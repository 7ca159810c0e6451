"""Denoising diffusion in 1000 linear steps with learned variances (arXiv 2006.11239, 2102.09672).

Legend: B batch, K channels, H x W map; images lie in -1 .. 1.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Diffusion", "NoisyBatch"]

PIXEL = 1.0 / 255.0
"""Half the distance between two of 256 levels in -1 .. 1."""


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """Images (B, K, H, W), steps t (B,), the noise that was added to them, and labels (B,)."""

    clean: Tensor
    t: Tensor
    noise: Tensor
    label: Tensor


@dataclass(frozen=True)
class Diffusion:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise; beta_t linear from `first` to `last` over `steps`.

    A model maps (x_t, t, label) to (B, 2 K, H, W): the noise e, and v in -1 .. 1 between the smallest and the
    largest reverse variance: log var = (v + 1)/2 log beta_t + (1 - v)/2 log betatilde_t.
    """

    steps: int = 1000
    first: float = 1e-4
    last: float = 0.02

    @cached_property
    def betas(self) -> Tensor:
        return torch.linspace(self.first, self.last, self.steps, dtype=torch.float64)

    @cached_property
    def kept(self) -> Tensor:
        """abar_t, the share of the image's variance that is left."""
        return (1.0 - self.betas).cumprod(0)

    @cached_property
    def _kept_before(self) -> Tensor:
        return torch.cat([torch.ones(1, dtype=torch.float64), self.kept[:-1]])

    @cached_property
    def _least_log_variance(self) -> Tensor:
        least = self.betas * (1 - self._kept_before) / (1 - self.kept)
        # At the first step it is 0: the next one stands in.
        return torch.cat([least[1:2], least[1:]]).log()

    def batches(
        self, data: Iterator[tuple[Tensor, Tensor]], seed: int, *, classes: int, unlabelled: float = 0.1
    ) -> Iterator[NoisyBatch]:
        """Images with steps and noise drawn for each; a share of labels becomes `classes`: no label."""
        generator = torch.Generator().manual_seed(seed)
        for images, label in data:
            t = torch.randint(0, self.steps, label.shape, generator=generator)
            noise = torch.randn(images.shape, generator=generator)
            dropped = torch.rand(label.shape, generator=generator) < unlabelled
            yield NoisyBatch(images, t, noise, label.masked_fill(dropped, classes))

    def noisy(self, batch: NoisyBatch) -> Float[Tensor, "B K H W"]:
        """x_t."""
        kept = self._at(self.kept, batch.t, batch.clean)
        return kept.sqrt() * batch.clean + (1 - kept).sqrt() * batch.noise

    def noise_error(self, model: nn.Module, batch: NoisyBatch) -> Float[Tensor, ""]:
        """Mean squared error of the noise."""
        noise = model(self.noisy(batch), batch.t, batch.label).chunk(2, 1)[0]
        return (noise - batch.noise).square().mean()

    def loss(self, model: nn.Module, batch: NoisyBatch) -> Float[Tensor, ""]:
        """Mean squared error of the noise, plus the variational term in bits, which trains variances only.

        The term is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) with the predicted mean detached, and at the
        first step the negative log-likelihood of 256 levels.
        """
        at = self.noisy(batch)
        noise, v = model(at, batch.t, batch.label).chunk(2, 1)
        log_variance = self._log_variance(v, batch.t)
        mean = self._mean(self._clean(at, noise.detach(), batch.t), at, batch.t)
        true_mean = self._mean(batch.clean, at, batch.t)
        true_log = self._at(self._least_log_variance, batch.t, at)
        divergence = 0.5 * (
            log_variance - true_log - 1.0 + torch.exp(true_log - log_variance)
            + (true_mean - mean).square() * torch.exp(-log_variance)
        )  # fmt: skip
        first = -_log_likelihood(batch.clean, mean, 0.5 * log_variance)
        bound = torch.where(batch.t[:, None, None, None] == 0, first, divergence).mean() / math.log(2)
        return (noise - batch.noise).square().mean() + bound

    @torch.no_grad()
    def sample(
        self,
        model: Callable[[Tensor, Tensor, Tensor], Tensor],
        label: Int[Tensor, " B"],
        shape: tuple[int, int, int],
        generator: torch.Generator,
    ) -> Float[Tensor, "B K H W"]:
        """Images of (K, H, W) from noise, through all steps. model: also a guided one, as a function."""
        x = torch.randn((len(label), *shape), generator=generator)
        for step in reversed(range(self.steps)):
            t = torch.full((len(label),), step, dtype=torch.int64)
            noise, v = model(x, t, label).chunk(2, 1)
            mean = self._mean(self._clean(x, noise, t).clamp(-1, 1), x, t)
            if step == 0:
                return mean
            fresh = torch.randn(x.shape, generator=generator)
            x = mean + torch.exp(0.5 * self._log_variance(v, t)) * fresh
        return x

    def _at(self, values: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return values.to(like.device)[t][:, None, None, None].to(like.dtype)

    def _clean(self, at: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        kept = self._at(self.kept, t, at)
        return (at - (1 - kept).sqrt() * noise) / kept.sqrt()

    def _mean(self, clean: Tensor, at: Tensor, t: Tensor) -> Tensor:
        """The mean of q(x_{t-1} | x_t, x_0)."""
        of_clean = self.betas * self._kept_before.sqrt() / (1 - self.kept)
        of_noisy = (1 - self._kept_before) * (1 - self.betas).sqrt() / (1 - self.kept)
        return self._at(of_clean, t, at) * clean + self._at(of_noisy, t, at) * at

    def _log_variance(self, v: Tensor, t: Tensor) -> Tensor:
        least, most = self._at(self._least_log_variance, t, v), self._at(self.betas.log(), t, v)
        share = (v + 1) / 2
        return share * most + (1 - share) * least


def _log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log of a Gaussian's mass on the level of each pixel; the outermost levels reach to infinity."""
    scale = torch.exp(-log_scale)
    above, below = ((x - mean + edge) * scale for edge in (PIXEL, -PIXEL))
    up, down = torch.special.ndtr(above), torch.special.ndtr(below)
    inside = torch.log((up - down).clamp(min=1e-12))
    outer = torch.where(x > 0.999, torch.log((1 - down).clamp(min=1e-12)), inside)
    return torch.where(x < -0.999, torch.log(up.clamp(min=1e-12)), outer)
