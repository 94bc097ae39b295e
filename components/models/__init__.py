"""Models: facts of the data in, a :class:`ModelOutput` of output and features out."""

from components.models.base import ModelOutput, split_output
from components.models.convolutional import ConvNet, ResNet
from components.models.dense import MLP, LinearModel
from components.models.forecasting import DLinear, PatchTransformer
from components.models.heads import EmbeddingHead, ProjectionHead
from components.models.hub import HuggingFaceModel, TimmModel
from components.models.transformer import TransformerLM
from components.models.unet import UNet

__all__ = [
    "MLP",
    "ConvNet",
    "DLinear",
    "EmbeddingHead",
    "HuggingFaceModel",
    "LinearModel",
    "ModelOutput",
    "PatchTransformer",
    "ProjectionHead",
    "ResNet",
    "TimmModel",
    "TransformerLM",
    "UNet",
    "split_output",
]
