"""Optimizers: torch's own are chosen by their option files; here is what torch leaves to its user."""

from components.optimizers.groups import parameter_groups
from components.optimizers.muon import MuonWithAuxAdamW, muon_groups

__all__ = ["MuonWithAuxAdamW", "muon_groups", "parameter_groups"]
