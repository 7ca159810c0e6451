"""Laws fitted to measurements: pure functions of numbers."""

from attlas.laws.compositional import Index, compositional_index
from attlas.laws.efficiency import EfficiencyLength, efficiency_length

__all__ = ["EfficiencyLength", "Index", "compositional_index", "efficiency_length"]
