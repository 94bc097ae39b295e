"""Averages: of the weights along training, of an ensemble's logits, of a lost stage's neighbours, of several workers' vectors."""

from components.averaging.aggregation import RULES, flag, nearest_neighbour_average
from components.averaging.byzantine import Workers
from components.averaging.ensembles import AsymptoteLaw, LogitAverage, average_logits
from components.averaging.extrapolation import NegativeExtrapolation, gradient_cosine, neon
from components.averaging.iterates import PolyakAverage, TailAverage, averaged
from components.averaging.plasticity import PlasticityStabilityEMA, stability
from components.averaging.stages import StageFailures, recovered
from components.averaging.switch import SwitchEMA
from components.averaging.weights import EMA, SWA, WeightAverage
from components.averaging.workers import WorkerAggregation

__all__ = [
    "EMA",
    "RULES",
    "SWA",
    "AsymptoteLaw",
    "LogitAverage",
    "NegativeExtrapolation",
    "PlasticityStabilityEMA",
    "PolyakAverage",
    "StageFailures",
    "SwitchEMA",
    "TailAverage",
    "WeightAverage",
    "WorkerAggregation",
    "Workers",
    "average_logits",
    "averaged",
    "flag",
    "gradient_cosine",
    "nearest_neighbour_average",
    "neon",
    "recovered",
    "stability",
]
