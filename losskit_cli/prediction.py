"""Predictions of a finished run for new data, written as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from components.data.base import Batch, DataModule
from losskit_cli.errors import UsageError
from losskit_cli.models import load_model_of_run
from losskit_cli.run import restored
from losskit_cli.rundir import RunSpec

BATCH = 1024


def predict_file(spec: RunSpec, checkpoint: Path, input: Path, output: Path) -> int:
    """Read ``input`` as the run's data module does, predict, write ``output``; the number of rows.

    Raises:
        UsageError: the run's data cannot be read from a file, or the file does not fit.
    """
    experiment = restored(spec, checkpoint, load_data=False, load_model=load_model_of_run)
    try:
        batch = experiment.data.read_inputs(input)
    except ValueError as error:
        raise UsageError(f"--input {input}: {error}") from error
    experiment.task.eval()
    with torch.inference_mode():
        parts = [_in_units(experiment.task.predict(part), experiment.data) for part in _batches(batch)]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
    table = _table(columns, experiment.data.class_names)
    _write(table, output)
    return len(table)


def _in_units(columns: dict[str, Tensor], data: DataModule) -> dict[str, Tensor]:
    """Predicted values in the target's own units; what is no value of the target (a class, a probability) stays."""
    converted = dict(columns)
    for name, values in columns.items():
        if not values.is_floating_point():
            continue
        if name == "prediction" or name.startswith("quantile_"):
            converted[name] = data.to_units(values)
        elif name == "standard_deviation":
            converted[name] = data.to_units(values) - data.to_units(torch.zeros_like(values))
    return converted


def _batches(batch: Batch) -> list[Batch]:
    size = len(batch["index"])
    return [{name: value[first : first + BATCH] for name, value in batch.items()} for first in range(0, size, BATCH)]


def _table(columns: dict[str, Tensor], class_names: list[str]) -> pd.DataFrame:
    """One row a sample. Class indices become class names; a column of several values becomes several columns."""
    table: dict[str, Any] = {}
    for name, values in columns.items():
        if name == "prediction" and class_names and values.ndim == 1 and not values.is_floating_point():
            table[name] = [class_names[i] for i in values.tolist()]
        elif values.ndim == 1:
            table[name] = values.tolist()
        else:
            flat = values.flatten(1)
            labels = class_names if flat.shape[1] == len(class_names) else [str(i) for i in range(flat.shape[1])]
            table |= {f"{name}_{label}": flat[:, i].tolist() for i, label in enumerate(labels)}
    return pd.DataFrame(table)


def _write(table: pd.DataFrame, output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".parquet":
            table.to_parquet(output, index=False)
        elif output.suffix == ".json":
            table.to_json(output, orient="records")
        else:
            table.to_csv(output, index=False)
    except OSError as error:
        raise UsageError(f"--output {output}: {error.strerror or error}") from error
