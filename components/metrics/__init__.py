"""Metrics beside torchmetrics' own: a ``torchmetrics.Metric`` each, its ``update`` bound to a task's quantities by the option file."""

from components.metrics.attacks import AttackedAccuracy
from components.metrics.campaign import CampaignProfit, CampaignRegret, ExpectedMaximumProfit
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
from components.metrics.confusion import BinaryAveragePrecision, ConfusionRate
from components.metrics.errors import (
    AdjustedR2Score,
    AdversarialRMSE,
    LogSpectralDistance,
    MeanBiasError,
    MeanSquaredError,
    PeakSignalNoiseRatio,
    PercentageError,
)
from components.metrics.numerics import SoftmaxCollapse
from components.metrics.pairs import CrossModalRecall
from components.metrics.ranking import BinaryLogLoss, RankingAUC, RankingMRR, RankingNDCG, RankingPrecision, RankingRecall, Welfare
from components.metrics.regression import MASE, MeanAbsoluteError, R2Score, RootMeanSquaredError
from components.metrics.relative import NegativeLogLikelihood, NormalisedSquaredError, RelativeL2Error, SparseObjective, WithinGroupCorrelation
from components.metrics.retrieval import MAPAtR, RecallAtK
from components.metrics.returns import MADL, AdjustedInformationRatio, AnnualReturn, HitRate, InformationRatio, MaxDrawdown, StrategyMetric, Volatility
from components.metrics.segmentation_samples import GeneralizedEnergyDistance, SampleDiversity
from components.metrics.selective import (
    BrierScore,
    ConfidenceAUROC,
    Coverage,
    CoverageAtPrecision,
    KSCalibrationError,
    PrecisionCoverageArea,
    RejectionCost,
    SelectivePrecision,
)
from components.metrics.separation import SourceToDistortion
from components.metrics.topology import BettiMatchingError, BettiNumberError, BoundaryF1, CenterlineDice
from components.metrics.verification import AcceptanceAtRate, EqualErrorRate, FewShotAccuracy, SimilarityGap, VerificationAUC, utilisation

__all__ = [
    "MADL",
    "MASE",
    "AcceptanceAtRate",
    "AdjustedInformationRatio",
    "AdjustedR2Score",
    "AdversarialRMSE",
    "Agreement",
    "AnnualReturn",
    "AttackedAccuracy",
    "BettiMatchingError",
    "BettiNumberError",
    "BinaryAUROC",
    "BinaryAccuracy",
    "BinaryAveragePrecision",
    "BinaryF1Score",
    "BinaryLogLoss",
    "BoundaryF1",
    "BrierScore",
    "CalibrationError",
    "CampaignProfit",
    "CampaignRegret",
    "CenterlineDice",
    "ConfidenceAUROC",
    "ConfusionRate",
    "Coverage",
    "CoverageAtPrecision",
    "CrossModalRecall",
    "EqualErrorRate",
    "ExpectedMaximumProfit",
    "FewShotAccuracy",
    "GeneralizedEnergyDistance",
    "HitRate",
    "InformationRatio",
    "KSCalibrationError",
    "LogSpectralDistance",
    "MAPAtR",
    "MaxDrawdown",
    "MeanAbsoluteError",
    "MeanBiasError",
    "MeanSquaredError",
    "MultilabelAccuracy",
    "MultilabelAveragePrecision",
    "MultilabelF1Score",
    "NegativeLogLikelihood",
    "NormalisedSquaredError",
    "PeakSignalNoiseRatio",
    "PercentageError",
    "PrecisionCoverageArea",
    "R2Score",
    "RankingAUC",
    "RankingMRR",
    "RankingNDCG",
    "RankingPrecision",
    "RankingRecall",
    "RecallAtK",
    "RejectionCost",
    "RelativeL2Error",
    "RootMeanSquaredError",
    "SampleDiversity",
    "SelectivePrecision",
    "SimilarityGap",
    "SoftmaxCollapse",
    "SourceToDistortion",
    "SparseObjective",
    "StrategyMetric",
    "VerificationAUC",
    "Volatility",
    "Welfare",
    "WithinGroupCorrelation",
    "utilisation",
]
