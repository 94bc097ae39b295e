"""Callbacks that act around steps: checkpoints that survive a kill, clean interrupts; and steps that are only tried."""

from components.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, DamagedCheckpointError, is_intact, newest_intact
from components.callbacks.interrupts import Interrupts, TrainingInterrupted
from components.callbacks.nlm_alignment import NLMAlignment, nlm_alignment
from components.callbacks.optimizer_modes import OptimizerModes
from components.callbacks.probes import Prober, ProbeStopped, Snapshot, Tried
from components.callbacks.telling import Telling

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoints",
    "DamagedCheckpointError",
    "Interrupts",
    "NLMAlignment",
    "OptimizerModes",
    "ProbeStopped",
    "Prober",
    "Snapshot",
    "Telling",
    "TrainingInterrupted",
    "Tried",
    "is_intact",
    "newest_intact",
    "nlm_alignment",
]
