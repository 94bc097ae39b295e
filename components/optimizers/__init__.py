"""Optimizers: torch's own are chosen by their option files; here is what torch leaves to its user."""

from components.optimizers.adaptive_moments import AdamNC, AdEMAMix, AMSGrad
from components.optimizers.base import GradientOptimizer
from components.optimizers.directions import DOT, OrthoGrad
from components.optimizers.groups import parameter_groups
from components.optimizers.loss_aware import MoMo, MoMoAdam, NormalizedGD
from components.optimizers.low_memory import FRUGAL, Fira
from components.optimizers.muon import MuonWithAuxAdamW, muon_groups
from components.optimizers.online import AOG, ImplicitFTRL, LogBarrierFTRL, importance_weighted, log_barrier_distribution, magnitude_reduced
from components.optimizers.schedule_free import schedule_free_adamw, schedule_free_sgd

__all__ = [
    "AOG",
    "DOT",
    "FRUGAL",
    "AMSGrad",
    "AdEMAMix",
    "AdamNC",
    "Fira",
    "GradientOptimizer",
    "ImplicitFTRL",
    "LogBarrierFTRL",
    "MoMo",
    "MoMoAdam",
    "MuonWithAuxAdamW",
    "NormalizedGD",
    "OrthoGrad",
    "importance_weighted",
    "log_barrier_distribution",
    "magnitude_reduced",
    "muon_groups",
    "parameter_groups",
    "schedule_free_adamw",
    "schedule_free_sgd",
]
