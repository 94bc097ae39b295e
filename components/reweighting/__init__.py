"""Reweighting: how much each sample of a batch counts."""

from components.reweighting.base import Reweighter
from components.reweighting.classes import ClassBalanced
from components.reweighting.division import ConfidentConsensusDivision

__all__ = ["ClassBalanced", "ConfidentConsensusDivision", "Reweighter"]
