"""Models: facts of the data in, a :class:`ModelOutput` of output and features out."""

from components.models.base import ModelOutput, split_output
from components.models.calibrators import AdaptiveTemperature, TemperatureScaling
from components.models.convolutional import ConvNet, ResNet
from components.models.crosses import CrossNetwork, FusedCrossNetwork
from components.models.dense import MLP, LinearModel
from components.models.experts import MixtureOfExperts
from components.models.forecasting import DLinear, PatchTransformer
from components.models.heads import EmbeddingHead, ProjectionHead
from components.models.hub import HuggingFaceModel, TimmModel
from components.models.physics import CoordinateMLP, GaussianEnergy
from components.models.probabilistic_unet import ProbabilisticUNet
from components.models.splats import GEFMixture
from components.models.transformer import TransformerLM
from components.models.two_tower import Scorer, TwoTower
from components.models.unet import UNet
from components.models.unfolded import UnfoldedIHT, UnfoldedISTA
from components.models.xpatch import XPatch

__all__ = [
    "MLP",
    "AdaptiveTemperature",
    "ConvNet",
    "CoordinateMLP",
    "CrossNetwork",
    "DLinear",
    "EmbeddingHead",
    "FusedCrossNetwork",
    "GEFMixture",
    "GaussianEnergy",
    "HuggingFaceModel",
    "LinearModel",
    "MixtureOfExperts",
    "ModelOutput",
    "PatchTransformer",
    "ProbabilisticUNet",
    "ProjectionHead",
    "ResNet",
    "Scorer",
    "TemperatureScaling",
    "TimmModel",
    "TransformerLM",
    "TwoTower",
    "UNet",
    "UnfoldedIHT",
    "UnfoldedISTA",
    "XPatch",
    "split_output",
]
