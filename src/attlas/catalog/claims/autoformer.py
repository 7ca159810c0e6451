"""Autoformer's claim: it forecasts periodic series better than a Transformer, and finds their periods."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attlas.models import Autoformer

__all__ = ["CLAIM", "judge", "measure", "near_period"]

# series -> steps given, steps asked for, training steps
SERIES = {"elnino": (96, 24, 150), "co2": (104, 52, 150)}
TRAINED, SIMPLE = ("autoformer", "transformer"), ("seasonal naive", "ridge")
WIDTH, HEADS, BATCH = 64, 8, 32
LONGER = 6  # times as many steps with --long
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
CHANCE = 2.0  # how many times as often as by chance lags have to be near the period
SETTINGS = {
    "series": "; ".join(
        f"{name}: {given} steps given, {asked} asked for, {steps} training steps ({LONGER * steps} "
        "with --long)"
        for name, (given, asked, steps) in SERIES.items()
    ),
    "parts": "70 % to train, 10 % validation (the ridge's penalty alone), 20 % test; standardised",
    "nets": f"width {WIDTH}, {HEADS} heads, 1 encoder and 1 decoder layer, the decoder given half the input",
    "training": f"batch {BATCH}, AdamW 1e-3 with warm-up and cosine, no weight decay",
}


def make(name: str, given: int, asked: int) -> nn.Module:
    """An untrained net."""
    from attlas.layers import SelfAttention
    from attlas.models import Autoformer, SeriesTransformer
    from attlas.pattern import causal

    if name == "autoformer":
        return Autoformer(
            1, 1, asked, label=given // 2, width=WIDTH, heads=HEADS, encoder_layers=1, decoder_layers=1
        )
    own = SelfAttention(WIDTH, HEADS, pattern=causal(), bias=True)
    whole, cross = (SelfAttention(WIDTH, HEADS, bias=True) for _ in range(2))
    return SeriesTransformer(
        1, 1, asked, length=given, label=given // 2, width=WIDTH, encoder=[whole], decoder=[(own, cross)]
    )


def near_period(lags: Tensor, length: int, period: int) -> tuple[float, float]:
    """Share of lags within 1 step of a multiple of the period, and of all lags; those around 0 left out."""
    import torch

    def share(some: Tensor) -> float:
        some = some[(some > 1) & (some < length - 1)]
        gap = torch.minimum(some % period, period - some % period)
        return (gap <= 1).double().mean().item() if len(some) else 0.0

    return share(lags.flatten()), share(torch.arange(length))


def lags_of(net: Autoformer, values: Tensor, marks: Tensor) -> Tensor:
    """The lags that the first encoder layer chooses for each window."""
    from attlas.layers.autoformer import AutoCorrelation, choose_lags, lag_correlation

    x = net.encoder_embedding(values, marks[:, : values.shape[1]])
    mixer = net.encoder[0].mixer
    if not isinstance(mixer, AutoCorrelation):
        raise TypeError(f"the encoder's mixer must be an AutoCorrelation, got {type(mixer).__name__}")
    query, key, _ = mixer.project(x)
    return choose_lags(lag_correlation(query, key), mixer.factor)[0]


def net_values(name: str, series: str, seed: int, longer: int, step: Step) -> Values:
    """Errors of a trained net on the test windows, and Autoformer's lags."""
    import torch
    from torch.nn import functional

    from attlas.models import Autoformer
    from attlas.tasks import forecasts, load_series
    from attlas.train import Recipe, fit

    given, asked, steps = SERIES[series]
    loaded = load_series(series)
    data = forecasts(loaded, given, asked)

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(net(batch[0], batch[1]), batch[2])

    torch.manual_seed(seed)
    net = make(name, given, asked)
    recipe = Recipe(steps * longer, learning_rate=1e-3, weight_decay=0.0)
    fit(net, data.batches(BATCH, seed), loss, recipe, step=step)
    values, marks, answers = data.windows(data.test)
    with torch.no_grad():
        found = {f"{series} MSE, {name}": functional.mse_loss(net(values, marks), answers).item()}
        if isinstance(net, Autoformer):
            lags, period = lags_of(net, values, marks).flatten(1), loaded.period or 1
            near, chance = near_period(lags, given, period)
            # Projections may turn the phase: then lags lie one period apart, and on no multiple of it.
            apart, _ = near_period((lags[:, :, None] - lags[:, None]) % given, given, period)
            found |= {
                f"{series} lags near the period": near,
                f"{series} lags by chance": chance,
                f"{series} differences of lags near the period": apart,
            }
    return found


def simple_values(series: str) -> Values:
    """Errors without a net: the last period again, and a ridge regression on all given steps."""
    from sklearn.linear_model import Ridge

    from attlas.tasks import forecasts, load_series

    given, asked, _ = SERIES[series]
    loaded = load_series(series)
    data = forecasts(loaded, given, asked)
    period = loaded.period or 1

    def parts(starts: Tensor) -> tuple[Tensor, Tensor]:
        values, _, answers = data.windows(starts)
        return values[..., 0], answers[..., 0]

    values, answers = parts(data.test)
    again = values[:, -period:].repeat(1, -(-asked // period))[:, :asked]
    checked, wanted = parts(data.validation)

    def error(penalty: float, x: Tensor, y: Tensor) -> float:
        fitted = Ridge(alpha=penalty).fit(*(part.numpy() for part in parts(data.train)))
        return float(((fitted.predict(x.numpy()) - y.numpy()) ** 2).mean())

    best = min(PENALTIES, key=lambda penalty: error(penalty, checked, wanted))
    return {
        f"{series} MSE, seasonal naive": (again - answers).square().mean().item(),
        f"{series} MSE, ridge": error(best, values, answers),
    }


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Two nets and two simple forecasts on two series."""
    found: dict[str, float] = {}
    for series in SERIES:
        found |= remember(folder, f"{series}-simple", partial(simple_values, series))
        for name in TRAINED:

            def say(text: str, label: str = f"{series}, {name}") -> None:
                step(f"{label}: {text}")

            run = partial(net_values, name, series, seed, LONGER if long else 1, say)
            found |= remember(folder, f"{series}-{name}", run)
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)
    told, failed = [], []
    for series in SERIES:
        errors = {name: table[f"{series} MSE, {name}"] for name in (*TRAINED, *SIMPLE)}
        near, chance, apart = (
            table[f"{series} {what}"]["mean"]
            for what in ("lags near the period", "lags by chance", "differences of lags near the period")
        )
        listed = ", ".join(f"{name} {one['mean']:.3f} ± {one['sd']:.3f}" for name, one in errors.items())
        told.append(
            f"{series}: mean squared error {listed}; {near:.0%} of Autoformer's lags are within a step of a "
            f"multiple of the period, {chance:.0%} by chance; of the differences of two lags {apart:.0%}."
        )
        if errors["autoformer"]["mean"] >= errors["transformer"]["mean"]:
            failed.append(f"error below the Transformer's on {series}")
        if near < CHANCE * chance:
            failed.append(f"lags near the period {CHANCE:g} times as often as by chance on {series}")
    measured = " ".join(told)
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


CLAIM = Claim(
    says="On periodic series Autoformer forecasts better than a Transformer, and its lags are the periods.",
    rule=(
        "Means over the seeds, on both series: Autoformer's mean squared error on the test windows "
        f"is below the Transformer's, and its first encoder layer's lags (those around 0 left out) "
        f"are at least {CHANCE:g} "
        "times as often within a step of a multiple of the period as lags by chance. The last period "
        "repeated, a ridge regression and differences of lags are told beside it and do not decide."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=4.0,
)
