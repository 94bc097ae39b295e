"""Metrics beside torchmetrics' own: a ``torchmetrics.Metric`` each, its ``update`` bound to a task's quantities by the option file."""

from components.metrics.classification import (
    Agreement,
    BinaryAccuracy,
    BinaryAUROC,
    BinaryF1Score,
    CalibrationError,
    MultilabelAccuracy,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)
from components.metrics.regression import MASE, MeanAbsoluteError, R2Score, RootMeanSquaredError
from components.metrics.retrieval import MAPAtR, RecallAtK

__all__ = [
    "MASE",
    "Agreement",
    "BinaryAUROC",
    "BinaryAccuracy",
    "BinaryF1Score",
    "CalibrationError",
    "MAPAtR",
    "MeanAbsoluteError",
    "MultilabelAccuracy",
    "MultilabelAveragePrecision",
    "MultilabelF1Score",
    "R2Score",
    "RecallAtK",
    "RootMeanSquaredError",
]
