"""Tasks: LightningModules that turn a batch into named quantities, one for each kind of learning problem."""

from components.tasks.base import COMMON_OFFERS, NonFiniteLossError, Task
from components.tasks.classification import ClassificationTask
from components.tasks.distillation import DistillationTask, train_teacher
from components.tasks.embedding import EmbeddingTask
from components.tasks.language_modelling import LanguageModellingTask
from components.tasks.regression import ForecastingTask, RegressionTask
from components.tasks.segmentation import SegmentationTask
from components.tasks.self_supervised import SelfSupervisedTask

BY_NAME: dict[str, type[Task]] = {
    # a subclass comes before its base: the first match of isinstance is the most special one
    "distillation": DistillationTask,
    "classification": ClassificationTask,
    "forecasting": ForecastingTask,
    "regression": RegressionTask,
    "segmentation": SegmentationTask,
    "embedding": EmbeddingTask,
    "self_supervised": SelfSupervisedTask,
    "language_modelling": LanguageModellingTask,
}
"""Option name -> class."""

OFFERS: dict[str, frozenset[str]] = {name: COMMON_OFFERS | task.offers for name, task in BY_NAME.items()}
"""Option name -> names of all quantities that the task can offer."""

__all__ = [
    "BY_NAME",
    "COMMON_OFFERS",
    "OFFERS",
    "ClassificationTask",
    "DistillationTask",
    "EmbeddingTask",
    "ForecastingTask",
    "LanguageModellingTask",
    "NonFiniteLossError",
    "RegressionTask",
    "SegmentationTask",
    "SelfSupervisedTask",
    "Task",
    "train_teacher",
]
