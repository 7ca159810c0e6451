"""Laws fitted to measurements, and fits with a closed form: pure functions of numbers."""

from attlas.laws.compositional import Index, compositional_index
from attlas.laws.efficiency import EfficiencyLength, efficiency_length
from attlas.laws.rfa import attention_features, attention_kernel, perceptron_features, random_heads
from attlas.laws.ridge import RidgeFit, kernel_ridge_fit, ridge_fit

__all__ = [
    "EfficiencyLength",
    "Index",
    "RidgeFit",
    "attention_features",
    "attention_kernel",
    "compositional_index",
    "efficiency_length",
    "kernel_ridge_fit",
    "perceptron_features",
    "random_heads",
    "ridge_fit",
]
