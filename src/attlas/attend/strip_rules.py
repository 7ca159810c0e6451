"""The rules by which the strip kernel weighs: numbers that its loops and its callers share.

    SOFTMAX      w = exp(x - lse)
    SIGMOID      w = 1 / (1 + exp(-(x + b)))
    SOFTPLUS     w = u = log(1 + exp(x)), divided by its sum over the row
    SHIFT_POWER  w = max(0, a u - b)^p, divided by its sum over the row

with a, b of each query.
"""

__all__ = ["CONSTANTS", "SHIFT_POWER", "SIGMOID", "SOFTMAX", "SOFTPLUS"]

SOFTMAX, SIGMOID, SOFTPLUS, SHIFT_POWER = range(4)
CONSTANTS = 5
"""Numbers of each query that the backward of all but SOFTMAX needs: a, b, c, delta, mean."""
