"""Tasks: LightningModules that turn a batch into named quantities, one for each kind of learning problem."""

from components.tasks.adversarial_calibration import AdversarialCalibrationTask
from components.tasks.base import COMMON_OFFERS, NonFiniteLossError, Task
from components.tasks.calibration import CalibrationTask, PostHocTask, RejectionTask, train_predictor
from components.tasks.class_incremental import ClassIncrementalTask
from components.tasks.classification import ClassificationTask
from components.tasks.density_estimation import DensityEstimationTask
from components.tasks.distillation import DistillationTask, train_teacher
from components.tasks.embedding import EmbeddingTask
from components.tasks.label_proportions import LabelProportionsTask
from components.tasks.language_modelling import LanguageModellingTask
from components.tasks.noisy_pairs import NoisyPairsTask
from components.tasks.physics_informed import PhysicsInformedTask
from components.tasks.probabilistic_segmentation import ProbabilisticSegmentationTask
from components.tasks.ranking import AuctionsTask, CTRTask, RankingTask
from components.tasks.rating import RatingTask
from components.tasks.recovery import ImageRegressionTask, SparseRecoveryTask
from components.tasks.regression import ForecastingTask, RegressionTask
from components.tasks.segmentation import SegmentationTask
from components.tasks.self_supervised import SelfSupervisedTask
from components.tasks.separation import SeparationTask
from components.tasks.targeting import TargetingTask

BY_NAME: dict[str, type[Task]] = {
    # a subclass comes before its base: the first match of isinstance is the most special one
    "auctions": AuctionsTask,
    "distillation": DistillationTask,
    "targeting": TargetingTask,
    "calibration": CalibrationTask,
    "rejection": RejectionTask,
    "ctr": CTRTask,
    "ranking": RankingTask,
    "adversarial_calibration": AdversarialCalibrationTask,
    "class_incremental": ClassIncrementalTask,
    "label_proportions": LabelProportionsTask,
    "noisy_pairs": NoisyPairsTask,
    "rating": RatingTask,
    "classification": ClassificationTask,
    "forecasting": ForecastingTask,
    "sparse_recovery": SparseRecoveryTask,
    "regression": RegressionTask,
    "image_regression": ImageRegressionTask,
    "physics_informed": PhysicsInformedTask,
    "density_estimation": DensityEstimationTask,
    "separation": SeparationTask,
    "probabilistic_segmentation": ProbabilisticSegmentationTask,
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
    "AdversarialCalibrationTask",
    "AuctionsTask",
    "CTRTask",
    "CalibrationTask",
    "ClassIncrementalTask",
    "ClassificationTask",
    "DensityEstimationTask",
    "DistillationTask",
    "EmbeddingTask",
    "ForecastingTask",
    "ImageRegressionTask",
    "LabelProportionsTask",
    "LanguageModellingTask",
    "NoisyPairsTask",
    "NonFiniteLossError",
    "PhysicsInformedTask",
    "PostHocTask",
    "ProbabilisticSegmentationTask",
    "RankingTask",
    "RatingTask",
    "RegressionTask",
    "RejectionTask",
    "SegmentationTask",
    "SelfSupervisedTask",
    "SeparationTask",
    "SparseRecoveryTask",
    "TargetingTask",
    "Task",
    "train_predictor",
    "train_teacher",
]
