"""Laws: fits with a closed form, and what such fits say about attention."""

from attlas.laws.rfa import attention_features, attention_kernel, perceptron_features, random_heads
from attlas.laws.ridge import RidgeFit, kernel_ridge_fit, ridge_fit

__all__ = [
    "RidgeFit",
    "attention_features",
    "attention_kernel",
    "kernel_ridge_fit",
    "perceptron_features",
    "random_heads",
    "ridge_fit",
]
