"""Laws fitted to measurements: pure functions of numbers."""

from attlas.laws.compositional import Index, compositional_index
from attlas.laws.efficiency import EfficiencyLength, efficiency_length

__all__ = ["EfficiencyLength", "Index", "compositional_index", "efficiency_length"]
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
