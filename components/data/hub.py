"""Data sets of the Hugging Face hub, or local ones in its formats, through ``datasets`` (``pip install losskit[hub]``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from components.data.arrays import ArrayData, Encoder, Samples, TensorEncoder
from components.data.base import Batch
from components.data.files import existing_path, require_columns
from components.data.folder import ENDINGS, is_picture, picture_tensor, read_pictures, sides
from components.data.tables import TableEncoder, read_table, read_target, require_no_missing
from components.validation import require, require_choice


class HuggingFace(ArrayData):
    """A data set of pictures (one column of them) or of columns of numbers and texts, read whole.

    The set's own ``train``, ``validation`` and ``test`` splits are used; what it lacks of the latter two is taken from ``train``.

    Args:
        path: a name on the hub (``ylecun/mnist``), a CSV, JSON, JSON-lines or Parquet file, or a folder: one that ``save_to_disk``
            wrote, or any that ``datasets.load_dataset`` takes.
        target: name of the target column, or a list (see :class:`~components.data.tables.TableFile`).
        name: which configuration of a set that has several.
        inputs: names of the input columns; default: a column of pictures if there is one, else all columns but the target.
        kind: ``auto``, ``class`` or ``real``, as for tables.
        image_size, channels: what pictures are resized and converted to.
        standardise: pictures to mean 0 and standard deviation 1 of training, per channel, instead of [0, 1] (columns of numbers always).
        missing_indicator, max_categories: see :class:`~components.data.tables.TableEncoder`.
        revision: branch, tag or commit on the hub; name one to get the same data tomorrow.
        cache_dir: where ``datasets`` keeps its files; default: its own place.
        **common: see :class:`~components.data.arrays.ArrayData` and :class:`~components.data.base.DataModule`.

    Raises:
        ImportError: ``datasets`` is not installed.
        ValueError: no such set, file or column; a wrong target.
    """

    builders: ClassVar[Mapping[str, str]] = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    own_splits: ClassVar[Mapping[str, str]] = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}

    def __init__(
        self,
        path: str,
        target: str | Sequence[str],
        *,
        name: str | None = None,
        inputs: Sequence[str] = (),
        kind: str = "auto",
        image_size: int | Sequence[int] = 32,
        channels: int = 3,
        standardise: bool = False,
        missing_indicator: bool = False,
        max_categories: int = 100,
        revision: str | None = None,
        cache_dir: str | None = None,
        **common: Any,
    ) -> None:
        self.encoders: dict[str, Encoder] = {
            "pictures": TensorEncoder(standardise=standardise, divisor=255.0),
            "columns": TableEncoder(missing_indicator=missing_indicator, max_categories=max_categories),
        }
        super().__init__(self.encoders["columns"], **common)
        require_choice("kind", kind, ("auto", "class", "real"))
        require(channels in (1, 3), "channels must be 1 (grey) or 3 (RGB)", channels)
        self.path, self.name, self.kind, self.revision, self.cache_dir = path, name, kind, revision, cache_dir
        self.target = [target] if isinstance(target, str) else [str(t) for t in target]
        self.input_columns = list(inputs)
        self.image_size, self.channels = sides(image_size), channels
        self.form = "columns"

    def read(self) -> Samples:
        import pandas as pd

        parts = self.own_parts(load(self.path, self.name, self.revision, self.cache_dir))
        features = parts["train"].features
        require_columns(self.target, list(features), "data.target")
        require_columns(self.input_columns, list(features), "data.inputs")
        pictures = [c for c in (self.input_columns or features) if type(features[c]).__name__ == "Image"]
        part = [name for name, rows in parts.items() for _ in range(len(rows))]
        columns = [c for c in (self.input_columns or features) if c not in self.target and c not in pictures]
        wanted = self.target if pictures else [*self.target, *columns]
        frame = pd.concat([rows.select_columns(wanted).to_pandas() for rows in parts.values()], ignore_index=True)
        target, kind, classes = self.read_labels(frame, features)
        if not pictures:
            return Samples(frame[columns], target, kind, classes, part)
        require(len(pictures) == 1, f"data.inputs must name one of the columns of pictures: {', '.join(pictures)}")
        self.use("pictures")
        tensors = [picture_tensor(p, self.image_size, self.channels) for rows in parts.values() for p in rows[pictures[0]]]
        return Samples(torch.stack(tensors), target, kind, classes, part)

    def read_labels(self, frame: Any, features: Mapping[str, Any]) -> tuple[Tensor, str, list[str]]:
        """The target; a column that has names for its classes (``ClassLabel``) keeps their numbers."""
        column = features[self.target[0]]
        if len(self.target) == 1 and type(column).__name__ == "ClassLabel" and self.kind != "real":
            require_no_missing(frame, self.target)
            return torch.tensor(frame[self.target[0]].to_list()), "multiclass", list(column.names)
        return read_target(frame, self.target, self.kind, self.known_classes if self._saved else [])

    def own_parts(self, loaded: Mapping[str, Any]) -> dict[str, Any]:
        parts = {self.own_splits[n]: rows for n, rows in loaded.items() if n in self.own_splits}
        require("train" in parts, f"the data set {self.path!r} has no split 'train'; it has {', '.join(loaded)}")
        require(len(parts["train"]) > 0, f"the data set {self.path!r} has no rows")
        return parts

    def use(self, form: str) -> None:
        """``pictures`` or ``columns``."""
        self.form, self.encoder = form, self.encoders[form]

    def fitted_state(self) -> dict[str, Any]:
        return super().fitted_state() | {"form": self.form}

    def load_fitted_state(self, state: Mapping[str, Any]) -> None:
        self.use(state["form"])
        super().load_fitted_state(state)

    def read_inputs(self, path: str | Path) -> Batch:
        """New pictures (a file or a folder of them), or a new CSV or Parquet file, whatever training had."""
        if self.form == "columns":
            return self.encoded(read_table(path, "input"))
        found = existing_path(path, "input")
        files = sorted(p for p in found.rglob("*") if is_picture(p)) if found.is_dir() else [found]
        require(len(files) > 0, f"input: the folder {str(path)!r} has no pictures ({', '.join(sorted(ENDINGS))})")
        return self.encoded(read_pictures(files, self.image_size, self.channels))


def load(path: str, name: str | None, revision: str | None, cache_dir: str | None) -> Mapping[str, Any]:
    """Splits by name, from a file, a folder or the hub."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("data=huggingface needs the package datasets: pip install 'losskit[hub]'") from error
    local = Path(path).expanduser()
    builder = HuggingFace.builders.get(local.suffix.lower())
    if builder is not None or path.startswith((".", "/", "~")):
        local = existing_path(path, "data.path")
    try:
        if local.is_file():
            require(builder is not None, f"data.path must end with one of {', '.join(HuggingFace.builders)}", path)
            loaded = datasets.load_dataset(builder, data_files=str(local), cache_dir=cache_dir)
        elif (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            loaded = datasets.load_from_disk(str(local))
        else:
            loaded = datasets.load_dataset(str(local) if local.is_dir() else path, name, revision=revision, cache_dir=cache_dir)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"data.path: datasets cannot load {path!r}: {error}") from error
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}
