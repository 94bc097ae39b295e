"""A finished run's weights at work: on a split of its data, and on new data, whose predictions become a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from components.data import ImageFolder
from components.data.base import Batch, DataModule
from components.data.folder import pictures_below
from components.data.tables import TableFile
from losskit_cli.build import Experiment
from losskit_cli.errors import UsageError
from losskit_cli.models import load_model_of_run
from losskit_cli.run import restored, test
from losskit_cli.rundir import RunSpec

BATCH = 1024
MAX_COLUMNS = 1000  # of one predicted quantity in a table: a picture's pixels belong in an .npz file


def evaluate_split(spec: RunSpec, checkpoint: Path, split: str) -> tuple[dict[str, float], int]:
    """The test metrics of ``checkpoint``'s weights on one split of ``spec``'s data, and its number of samples.

    Args:
        split: ``test``, ``val``, ``train``, or ``all``: the three together, for data that training has not seen.
    """
    experiment = restored(spec, checkpoint, load_data=True, load_model=load_model_of_run)
    data = experiment.data
    if split == "all":
        parts = [part for part in data.splits.values() if data.size(part)]
        data.splits["test"] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    elif split != "test":
        data.splits["test"] = data.splits[split]
    samples = data.size(data.splits["test"])
    if samples == 0:
        raise UsageError(f"the {split} split has no samples")
    return test(experiment), samples


def predict_file(spec: RunSpec, checkpoint: Path, input: Path | None, output: Path) -> tuple[int, list[str]]:
    """Read ``input`` as the run's data module does, predict, write ``output``.

    Args:
        input: new data; ``None``: the run's own test split, whose targets are then written beside the predictions.

    Returns:
        the number of rows, and what the reader should know.

    Raises:
        UsageError: the run's data cannot be read from a file, or the file does not fit.
    """
    experiment = restored(spec, checkpoint, load_data=input is None, load_model=load_model_of_run)
    data = experiment.data
    names: dict[str, Any] = {}
    if input is None:
        batches: Iterable[Batch] = data.test_dataloader()
    else:
        try:
            batches = _parts(data.read_inputs(input))
        except ValueError as error:
            raise UsageError(f"--input {input}: {error}") from error
        if isinstance(data, ImageFolder) and input.is_dir():
            names["file"] = [p.relative_to(input).as_posix() for p in pictures_below(input)]
    columns = _columns(experiment, batches)
    if output.suffix == ".npz":
        arrays: dict[str, Any] = {name: np.array(values) for name, values in names.items()} | {name: values.numpy() for name, values in columns.items()}
        _saved(output, lambda: np.savez(output, **arrays))
        return len(next(iter(columns.values()))), []
    table, wide = _table(columns, data)
    for position, (name, values) in enumerate(names.items()):
        table.insert(position, name, values)
    _write(table, output)
    return len(table), [f"{name} has too many values a row for a table and is left out: --output {output.with_suffix('.npz')} keeps it" for name in wide]


def _columns(experiment: Experiment, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """What the task predicts, for all batches together, and the targets where there are any."""
    task, data = experiment.task.eval(), experiment.data
    parts = []
    with torch.inference_mode():
        for batch in batches:
            predicted = task.predict(batch)
            if "target" in batch and "nll" not in predicted:  # of a text the targets are its inputs
                predicted = {"target": batch["target"], **predicted}
            parts.append(_in_units(predicted, data))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _in_units(columns: dict[str, Tensor], data: DataModule) -> dict[str, Tensor]:
    """Predicted values in the target's own units; what is no value of the target (a class, a probability) stays."""
    converted = dict(columns)
    for name, values in columns.items():
        if not values.is_floating_point():
            continue
        if name in ("prediction", "target") or name.startswith("quantile_"):
            converted[name] = data.to_units(values)
        elif name == "standard_deviation":
            converted[name] = data.to_units(values) - data.to_units(torch.zeros_like(values))
    return converted


def _parts(batch: Batch) -> Iterator[Batch]:
    for first in range(0, len(batch["index"]), BATCH):
        yield {name: value[first : first + BATCH] for name, value in batch.items()}


def _table(columns: dict[str, Tensor], data: DataModule) -> tuple[pd.DataFrame, list[str]]:
    """One row a sample, and the names of what was too wide for it.

    Class indices become class names; a column of several values becomes several, named after what they are values of.
    """
    table: dict[str, Any] = {}
    wide = []
    for name, values in columns.items():
        if values[0].numel() > MAX_COLUMNS:
            wide.append(name)
        elif name in ("prediction", "target") and data.class_names and values.ndim == 1 and not values.is_floating_point():
            table[name] = [data.class_names[i] if 0 <= i < len(data.class_names) else None for i in values.tolist()]
        elif values.ndim == 1:
            table[name] = values.tolist()
        else:
            labels = _labels(values, data)
            table |= {f"{name}_{label}" if label else name: column.tolist() for label, column in zip(labels, values.flatten(1).unbind(1), strict=True)}
    return pd.DataFrame(table), wide


def _labels(values: Tensor, data: DataModule) -> list[str]:
    """What the values of a row are called: classes, target columns, steps ahead (of each series), else numbers from 0."""
    shape = values.shape[1:]
    if len(shape) == 1 and shape[0] == len(data.class_names):
        return data.class_names
    if len(shape) == 1 and data.target_kind == "real" and isinstance(data, TableFile) and shape[0] == len(data.target):
        return data.target if shape[0] > 1 else [""]
    if len(shape) == 1 and shape[0] == 1:
        return [""]
    if len(shape) == 2 and data.target_kind == "real":
        return [f"{step + 1}_{series}" if shape[1] > 1 else str(step + 1) for step in range(shape[0]) for series in range(shape[1])]
    return ["_".join(map(str, np.unravel_index(i, shape))) for i in range(values[0].numel())]


def _write(table: pd.DataFrame, output: Path) -> None:
    if output.suffix == ".parquet":
        _saved(output, lambda: table.to_parquet(output, index=False))
    elif output.suffix == ".json":
        _saved(output, lambda: table.to_json(output, orient="records"))
    else:
        _saved(output, lambda: table.to_csv(output, index=False))


def _saved(output: Path, save: Any) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        save()
    except OSError as error:
        raise UsageError(f"--output {output}: {error.strerror or error}") from error
