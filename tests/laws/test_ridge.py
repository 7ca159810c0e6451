"""Ridge regression against scikit-learn, on both sides of n = P."""

from __future__ import annotations

import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from attlas.laws import kernel_ridge_fit, ridge_fit

PENALTIES = (1e-3, 1e-1, 1.0, 30.0)


def problem(n, width, generator, targets=2):
    truth = torch.randn(width, targets, generator=generator, dtype=torch.float64)
    features = torch.randn(n + 40, width, generator=generator, dtype=torch.float64)
    y = features @ truth + torch.randn(n + 40, targets, generator=generator, dtype=torch.float64)
    return features[:n], y[:n], features[n:], y[n:]


@pytest.mark.parametrize(("n", "width"), [(50, 7), (7, 50), (20, 20)])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_one_penalty_is_sklearn_ridge(n, width, penalty, generator):
    features, y, held, wanted = problem(n, width, generator)
    fit = ridge_fit(features, y, [penalty], (held, wanted))
    oracle = Ridge(alpha=penalty, fit_intercept=False).fit(features.numpy(), y.numpy())
    expected = torch.as_tensor(oracle.predict(held.numpy()))
    torch.testing.assert_close(fit.predict(held), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fit.weights, torch.as_tensor(oracle.coef_).mT, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_kernel_is_sklearn_kernel_ridge(penalty, generator):
    features, y, held, wanted = problem(30, 4, generator)
    kernel = (1 + features @ features.mT) ** 2
    between = (1 + held @ features.mT) ** 2
    fit = kernel_ridge_fit(kernel, y, [penalty], (between, wanted))
    oracle = KernelRidge(alpha=penalty, kernel="precomputed").fit(kernel.numpy(), y.numpy())
    expected = torch.as_tensor(oracle.predict(between.numpy()))
    torch.testing.assert_close(fit.predict(between), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("n", "width"), [(50, 7), (7, 50)])
def test_the_penalty_of_least_validation_error_is_taken(n, width, generator):
    features, y, held, wanted = problem(n, width, generator)
    fit = ridge_fit(features, y, PENALTIES, (held, wanted))
    alone = [ridge_fit(features, y, [penalty], (held, wanted)) for penalty in PENALTIES]
    errors = torch.stack([(one.predict(held) - wanted).square().mean(0) for one in alone])
    torch.testing.assert_close(fit.errors, errors)
    for target, best in enumerate(errors.argmin(0).tolist()):
        assert fit.penalty[target].item() == pytest.approx(PENALTIES[best])
        torch.testing.assert_close(fit.weights[:, target], alone[best].weights[:, target])


def test_every_target_has_a_penalty_of_its_own(generator):
    features, y, held, wanted = problem(40, 30, generator)
    noise = torch.randn(80, 1, generator=generator, dtype=torch.float64)
    y, wanted = torch.cat([y[:, :1], noise[:40]], 1), torch.cat([wanted[:, :1], noise[40:]], 1)
    fit = ridge_fit(features, y, [1e-2, 1e4], (held, wanted))
    assert fit.penalty.tolist() == pytest.approx([1e-2, 1e4])


def test_a_singular_kernel_is_fitted_too(generator):
    features, y, held, wanted = problem(12, 3, generator)
    fit = kernel_ridge_fit(features @ features.mT, y, [1e-6], (held @ features.mT, wanted))
    least = torch.linalg.lstsq(features, y).solution
    torch.testing.assert_close(fit.predict(held @ features.mT), held @ least, rtol=1e-4, atol=1e-4)


def test_errors(generator):
    features, y, held, wanted = problem(10, 3, generator)
    with pytest.raises(ValueError, match=r"penalties must be one or more numbers above 0, got \[0.0\]"):
        ridge_fit(features, y, [0.0], (held, wanted))
    with pytest.raises(ValueError, match="penalties must be one or more numbers above 0, got"):
        ridge_fit(features, y, [], (held, wanted))
    with pytest.raises(ValueError, match="targets must be finite; look for NaN"):
        ridge_fit(features, y / 0, [1.0], (held, wanted))
    with pytest.raises(ValueError, match="validation features must be finite; look for NaN"):
        ridge_fit(features, y, [1.0], (held * float("nan"), wanted))
    with pytest.raises(ValueError, match="validation targets must be finite"):
        ridge_fit(features, y, [1.0], (held, wanted / 0))
    with pytest.raises(ValueError, match="features and validation must have at least one row each, got 10"):
        ridge_fit(features, y, [1.0], (held[:0], wanted[:0]))
    with pytest.raises(ValueError, match="at least one row each, got 0 and"):
        ridge_fit(features[:0], y[:0], [1.0], (held, wanted))
    kernel = features @ features.mT
    with pytest.raises(ValueError, match="validation features must be finite"):
        kernel_ridge_fit(kernel, y, [1.0], (held @ features.mT / 0, wanted))
