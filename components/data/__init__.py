"""Data modules: bundled real sets, synthetic ones, and the user's own. All make the same kind of batches (:mod:`components.data.base`)."""

from components.data.arrays import ArrayData, Samples, TensorEncoder
from components.data.bags import BagOrder, Bags
from components.data.base import Batch, BatchLoader, DataModule, Split
from components.data.corruption import Corruption
from components.data.decisions import Churn, RareClass
from components.data.densities import GaussianRing
from components.data.folder import ImageFolder
from components.data.hub import HuggingFace
from components.data.identities import Identities
from components.data.images import Digits, DigitsAttributes, Faces, PictureTiles
from components.data.interactions import Auctions, FeatureCrosses, ImplicitFeedback, LabelSets, QueryDocuments
from components.data.mixtures import VoiceMixtures
from components.data.modular import ModularAddition
from components.data.npz import Npz
from components.data.pairs import PairedViews
from components.data.physics import Convection, TransportEquation
from components.data.raters import RaterShapes
from components.data.ratings import RatedQuality
from components.data.recovery import LineSignal, NoisyPictures, SparseRecovery
from components.data.samplers import BatchOrder, ClassBatchOrder
from components.data.series import Co2, ElNino, Macrodata, Series, Sunspots
from components.data.signals import AdvectedField, Returns, SeasonalSeries
from components.data.synthetic import GaussianMixture, RareGradients, TeacherStudent, TwoMoons
from components.data.tables import BreastCancer, Csv, Diabetes, Iris, Parquet, TableEncoder, Wine
from components.data.text import ByteText, PythonSource, TextFile
from components.data.topics import TopicMixtures
from components.data.vessels import Vessels

__all__ = [
    "AdvectedField",
    "ArrayData",
    "Auctions",
    "BagOrder",
    "Bags",
    "Batch",
    "BatchLoader",
    "BatchOrder",
    "BreastCancer",
    "ByteText",
    "Churn",
    "ClassBatchOrder",
    "Co2",
    "Convection",
    "Corruption",
    "Csv",
    "DataModule",
    "Diabetes",
    "Digits",
    "DigitsAttributes",
    "ElNino",
    "Faces",
    "FeatureCrosses",
    "GaussianMixture",
    "GaussianRing",
    "HuggingFace",
    "Identities",
    "ImageFolder",
    "ImplicitFeedback",
    "Iris",
    "LabelSets",
    "LineSignal",
    "Macrodata",
    "ModularAddition",
    "NoisyPictures",
    "Npz",
    "PairedViews",
    "Parquet",
    "PictureTiles",
    "PythonSource",
    "QueryDocuments",
    "RareClass",
    "RareGradients",
    "RatedQuality",
    "RaterShapes",
    "Returns",
    "Samples",
    "SeasonalSeries",
    "Series",
    "SparseRecovery",
    "Split",
    "Sunspots",
    "TableEncoder",
    "TeacherStudent",
    "TensorEncoder",
    "TextFile",
    "TopicMixtures",
    "TransportEquation",
    "TwoMoons",
    "Vessels",
    "VoiceMixtures",
    "Wine",
]
