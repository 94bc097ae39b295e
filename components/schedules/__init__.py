"""Schedules: pure functions step -> factor."""

from components.schedules.base import Schedule, Span, schedule_from_state, span_steps
from components.schedules.compose import Join, Piecewise, Power, Product, Replay, Scaled
from components.schedules.decay import Constant, Cosine, Exponential, InverseSqrt, Linear, Polynomial, Step
from components.schedules.phases import WSD, WSDS, CyclicCosine, DoubleSigmoid, OneCycle

__all__ = [
    "WSD",
    "WSDS",
    "Constant",
    "Cosine",
    "CyclicCosine",
    "DoubleSigmoid",
    "Exponential",
    "InverseSqrt",
    "Join",
    "Linear",
    "OneCycle",
    "Piecewise",
    "Polynomial",
    "Power",
    "Product",
    "Replay",
    "Scaled",
    "Schedule",
    "Span",
    "Step",
    "schedule_from_state",
    "span_steps",
]
