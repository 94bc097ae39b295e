"""Data modules: bundled real sets, synthetic ones, and the user's own. All make the same kind of batches (:mod:`components.data.base`)."""

from components.data.arrays import ArrayData, Samples, TensorEncoder
from components.data.base import Batch, BatchLoader, BatchOrder, DataModule, Split
from components.data.corruption import Corruption
from components.data.folder import ImageFolder
from components.data.hub import HuggingFace
from components.data.images import Digits, DigitsAttributes, Faces, PictureTiles
from components.data.npz import Npz
from components.data.series import Co2, ElNino, Macrodata, Series, Sunspots
from components.data.synthetic import GaussianMixture, RareGradients, TeacherStudent, TwoMoons
from components.data.tables import BreastCancer, Csv, Diabetes, Iris, Parquet, TableEncoder, Wine
from components.data.text import ByteText, PythonSource, TextFile

__all__ = [
    "ArrayData",
    "Batch",
    "BatchLoader",
    "BatchOrder",
    "BreastCancer",
    "ByteText",
    "Co2",
    "Corruption",
    "Csv",
    "DataModule",
    "Diabetes",
    "Digits",
    "DigitsAttributes",
    "ElNino",
    "Faces",
    "GaussianMixture",
    "HuggingFace",
    "ImageFolder",
    "Iris",
    "Macrodata",
    "Npz",
    "Parquet",
    "PictureTiles",
    "PythonSource",
    "RareGradients",
    "Samples",
    "Series",
    "Split",
    "Sunspots",
    "TableEncoder",
    "TeacherStudent",
    "TensorEncoder",
    "TextFile",
    "TwoMoons",
    "Wine",
]
