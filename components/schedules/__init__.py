"""Schedules: pure functions step -> factor."""

from components.schedules.base import Schedule, Span, schedule_from_state, span_steps
from components.schedules.compose import Join, Product, Scaled
from components.schedules.decay import Constant, Cosine, Exponential, InverseSqrt, Linear, Polynomial, Step
from components.schedules.phases import WSD, OneCycle

__all__ = [
    "WSD",
    "Constant",
    "Cosine",
    "Exponential",
    "InverseSqrt",
    "Join",
    "Linear",
    "OneCycle",
    "Polynomial",
    "Product",
    "Scaled",
    "Schedule",
    "Span",
    "Step",
    "schedule_from_state",
    "span_steps",
]
