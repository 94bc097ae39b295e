"""Models of finished runs, for distillation and for use outside the command line."""

from __future__ import annotations

from torch import nn

from losskit_cli.commands import checkpoint_path
from losskit_cli.run import restored
from losskit_cli.rundir import RunSpec
from losskit_cli.runs import find_run


def load_model_of_run(run: str) -> nn.Module:
    """The model of a run with its best weights, in evaluation mode.

    Args:
        run: its id, the unique beginning of that, its name, or its directory.

    >>> model = load_model_of_run("focal-digits-s3-brave-owl")  # doctest: +SKIP
    """
    found = find_run(run)
    experiment = restored(RunSpec.load(found.run_dir), checkpoint_path(found.run_dir, "best"), load_data=False, load_model=load_model_of_run)
    return experiment.task.model.eval()
