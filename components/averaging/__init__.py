"""Averages of the weights along training."""

from components.averaging.weights import EMA, SWA, WeightAverage

__all__ = ["EMA", "SWA", "WeightAverage"]
