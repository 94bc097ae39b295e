"""Reweighting: how much each sample of a batch counts."""

from components.reweighting.base import Reweighter
from components.reweighting.classes import ClassBalanced

__all__ = ["ClassBalanced", "Reweighter"]
