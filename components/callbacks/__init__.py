"""Callbacks that act around steps: checkpoints that survive a kill, clean interrupts."""

from components.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, DamagedCheckpointError, is_intact, newest_intact
from components.callbacks.interrupts import Interrupts, TrainingInterrupted

__all__ = ["AtomicCheckpointIO", "Checkpoints", "DamagedCheckpointError", "Interrupts", "TrainingInterrupted", "is_intact", "newest_intact"]
