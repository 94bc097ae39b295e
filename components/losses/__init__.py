"""Losses: ``nn.Module``s whose ``forward`` parameters name what they need (:mod:`components.quantities`)."""

from components.losses.base import IGNORE_INDEX, Head, Loss, Reduction, check_target, reduce_values
from components.losses.classification import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    FocalLoss,
    Poly1Loss,
    cross_entropy_per_element,
    probability_of_target,
)
from components.losses.distillation import KDLoss
from components.losses.language import LinearCrossEntropyLoss, NextTokenCrossEntropyLoss
from components.losses.metric_learning import SupervisedContrastiveLoss, TripletLoss
from components.losses.regression import GaussianNLLLoss, HuberLoss, L1Loss, LogCoshLoss, MSELoss, QuantileLoss
from components.losses.segmentation import DiceLoss
from components.losses.self_supervised import InfoNCELoss

__all__ = [
    "IGNORE_INDEX",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "GaussianNLLLoss",
    "Head",
    "HuberLoss",
    "InfoNCELoss",
    "KDLoss",
    "L1Loss",
    "LinearCrossEntropyLoss",
    "LogCoshLoss",
    "Loss",
    "MSELoss",
    "NextTokenCrossEntropyLoss",
    "Poly1Loss",
    "QuantileLoss",
    "Reduction",
    "SupervisedContrastiveLoss",
    "TripletLoss",
    "check_target",
    "cross_entropy_per_element",
    "probability_of_target",
    "reduce_values",
]
