"""Losses: ``nn.Module``s whose ``forward`` parameters name what they need (:mod:`components.quantities`)."""

from components.losses.adversarial import AdversarialCalibrationLoss
from components.losses.alignment import SymmetricInfoNCELoss, TripletAlignmentLoss
from components.losses.attacks import SmoothAdversarialCompSumLoss, TRADESLoss
from components.losses.base import IGNORE_INDEX, Head, Loss, Reduction, check_target, reduce_values
from components.losses.bottleneck import CSIBLoss
from components.losses.boxes import BalancedL1Loss, BoxIoULoss, SmoothL1Loss
from components.losses.calibration import CorrectnessAwareLoss
from components.losses.centers import CenterLoss
from components.losses.classification import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    FocalLoss,
    Poly1Loss,
    cross_entropy_per_element,
    probability_of_target,
)
from components.losses.comp_sum import CompSumLoss, comp_sum
from components.losses.confusion import AnyLoss, SelfAdjustingDiceLoss
from components.losses.costs import ProfitRegretLoss, RejectionLoss
from components.losses.ctr import TriBCELoss, WelfareRankLoss, fuse_branches
from components.losses.distillation import KDLoss
from components.losses.ensembles import EnsLoss
from components.losses.exponential_family import TweedieLoss
from components.losses.extreme import DecoupledSoftmaxLoss, SoftTopKLoss, soft_top_k
from components.losses.forecasting import HorizonWeightedLoss
from components.losses.incremental import DistributionBoundLoss
from components.losses.language import LinearCrossEntropyLoss, NextTokenCrossEntropyLoss
from components.losses.learned_link import LegendreTronLoss
from components.losses.margin_softmax import MarginSoftmaxLoss, UNPGLoss
from components.losses.margins import HingeLoss, KLDivergenceLoss, MultiClassHingeLoss
from components.losses.metric_learning import SupervisedContrastiveLoss, TripletLoss
from components.losses.mixed_pairs import MetrixLoss
from components.losses.ordinal import ScoreDistributionLoss, ThurstoneFidelityLoss
from components.losses.overlap import BoundaryLoss, GeneralizedDiceLoss, LovaszSoftmaxLoss, TverskyLoss
from components.losses.pair_weighting import BinomialDevianceLoss, ContrastiveLoss, LiftedStructureLoss, MultiSimilarityLoss, ProxyAnchorLoss
from components.losses.paired_predictions import PFIDLoss
from components.losses.physics import LagrangianPINNLoss, PINNLoss
from components.losses.polynomial import PolyNLoss
from components.losses.probabilistic_segmentation import ElboSegmentationLoss, StatisticalDistanceLoss
from components.losses.projection import MIPLoss
from components.losses.proportions import EasyLLPLoss, ProportionMatchingLoss
from components.losses.prototypes import ICNNLoss, PrototypeTripletLoss, PrototypicalLoss
from components.losses.ranking import BilateralSoftmaxLoss, ListwiseSoftmaxLoss, MannWhitneyLoss, PairwiseRankingLoss, PairwiseSoftmaxLoss
from components.losses.regression import GaussianNLLLoss, HuberLoss, L1Loss, LogCoshLoss, MSELoss, QuantileLoss
from components.losses.relative_errors import LogErrorLoss, MeanBiasLoss, PercentageErrorLoss, RelativeErrorLoss
from components.losses.returns import DirectionalLoss
from components.losses.robust_ldr import ALDRKLLoss, LDRKLLoss
from components.losses.segmentation import DiceLoss
from components.losses.self_supervised import InfoNCELoss
from components.losses.separation import IdealBinaryMaskLoss, SpectrogramMSELoss
from components.losses.sparse_softmax import MultilabelSparsemaxLoss, Sparsemax, SparsemaxLoss, sparsemax
from components.losses.speaker import GE2ELoss
from components.losses.spectral import AMSELoss
from components.losses.spherical import SphericalSoftmaxLoss, StablemaxLoss, TaylorSoftmaxLoss, ZLoss
from components.losses.spherical_output import SphericalOutput
from components.losses.splatting import FrequencyModulatedLoss
from components.losses.squared_scores import RescaledSquareLoss, SquentropyLoss
from components.losses.topology import BettiMatchingLoss
from components.losses.transport import SparseTransportLoss
from components.losses.unfolding import SparseObjectiveLoss
from components.losses.unnormalised import MECOLoss, NCELoss

__all__ = [
    "IGNORE_INDEX",
    "ALDRKLLoss",
    "AMSELoss",
    "AdversarialCalibrationLoss",
    "AnyLoss",
    "BCEWithLogitsLoss",
    "BalancedL1Loss",
    "BettiMatchingLoss",
    "BilateralSoftmaxLoss",
    "BinomialDevianceLoss",
    "BoundaryLoss",
    "BoxIoULoss",
    "CSIBLoss",
    "CenterLoss",
    "CompSumLoss",
    "ContrastiveLoss",
    "CorrectnessAwareLoss",
    "CrossEntropyLoss",
    "DecoupledSoftmaxLoss",
    "DiceLoss",
    "DirectionalLoss",
    "DistributionBoundLoss",
    "EasyLLPLoss",
    "ElboSegmentationLoss",
    "EnsLoss",
    "FocalLoss",
    "FrequencyModulatedLoss",
    "GE2ELoss",
    "GaussianNLLLoss",
    "GeneralizedDiceLoss",
    "Head",
    "HingeLoss",
    "HorizonWeightedLoss",
    "HuberLoss",
    "ICNNLoss",
    "IdealBinaryMaskLoss",
    "InfoNCELoss",
    "KDLoss",
    "KLDivergenceLoss",
    "L1Loss",
    "LDRKLLoss",
    "LagrangianPINNLoss",
    "LegendreTronLoss",
    "LiftedStructureLoss",
    "LinearCrossEntropyLoss",
    "ListwiseSoftmaxLoss",
    "LogCoshLoss",
    "LogErrorLoss",
    "Loss",
    "LovaszSoftmaxLoss",
    "MECOLoss",
    "MIPLoss",
    "MSELoss",
    "MannWhitneyLoss",
    "MarginSoftmaxLoss",
    "MeanBiasLoss",
    "MetrixLoss",
    "MultiClassHingeLoss",
    "MultiSimilarityLoss",
    "MultilabelSparsemaxLoss",
    "NCELoss",
    "NextTokenCrossEntropyLoss",
    "PFIDLoss",
    "PINNLoss",
    "PairwiseRankingLoss",
    "PairwiseSoftmaxLoss",
    "PercentageErrorLoss",
    "Poly1Loss",
    "PolyNLoss",
    "ProfitRegretLoss",
    "ProportionMatchingLoss",
    "PrototypeTripletLoss",
    "PrototypicalLoss",
    "ProxyAnchorLoss",
    "QuantileLoss",
    "Reduction",
    "RejectionLoss",
    "RelativeErrorLoss",
    "RescaledSquareLoss",
    "ScoreDistributionLoss",
    "SelfAdjustingDiceLoss",
    "SmoothAdversarialCompSumLoss",
    "SmoothL1Loss",
    "SoftTopKLoss",
    "SparseObjectiveLoss",
    "SparseTransportLoss",
    "Sparsemax",
    "SparsemaxLoss",
    "SpectrogramMSELoss",
    "SphericalOutput",
    "SphericalSoftmaxLoss",
    "SquentropyLoss",
    "StablemaxLoss",
    "StatisticalDistanceLoss",
    "SupervisedContrastiveLoss",
    "SymmetricInfoNCELoss",
    "TRADESLoss",
    "TaylorSoftmaxLoss",
    "ThurstoneFidelityLoss",
    "TriBCELoss",
    "TripletAlignmentLoss",
    "TripletLoss",
    "TverskyLoss",
    "TweedieLoss",
    "UNPGLoss",
    "WelfareRankLoss",
    "ZLoss",
    "check_target",
    "comp_sum",
    "cross_entropy_per_element",
    "fuse_branches",
    "probability_of_target",
    "reduce_values",
    "soft_top_k",
    "sparsemax",
]
