"""Regularizers: scalars added to the loss, each with a weight that is a number or a schedule."""

from components.regularizers.base import Regularizer
from components.regularizers.gradients import JacobianNorm
from components.regularizers.outputs import ActivationL2, ConfidencePenalty
from components.regularizers.weights import L1, L2, GroupLasso, Spectral

__all__ = ["L1", "L2", "ActivationL2", "ConfidencePenalty", "GroupLasso", "JacobianNorm", "Regularizer", "Spectral"]
