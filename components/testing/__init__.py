"""The contract kit: trials that somebody's own component inherits in its tests by supplying one fixture. Needs pytest."""

import pytest

# before they are imported: their assertions then show the values that they compared, as those of a test file do
KINDS = ("averaging", "losses", "optimizers", "regularizers", "reweighting", "schedules", "transforms")
pytest.register_assert_rewrite(*(f"components.testing.{kind}" for kind in KINDS))

from components.testing.averaging import AveragingContract  # noqa: E402
from components.testing.losses import LossContract, example_facts, example_quantities  # noqa: E402
from components.testing.optimizers import OptimizerContract, OptimizerReferenceContract  # noqa: E402
from components.testing.regularizers import RegularizerContract  # noqa: E402
from components.testing.reweighting import ReweightingContract  # noqa: E402
from components.testing.schedules import ScheduleContract  # noqa: E402
from components.testing.transforms import TransformContract  # noqa: E402

__all__ = [
    "AveragingContract",
    "LossContract",
    "OptimizerContract",
    "OptimizerReferenceContract",
    "RegularizerContract",
    "ReweightingContract",
    "ScheduleContract",
    "TransformContract",
    "example_facts",
    "example_quantities",
]
