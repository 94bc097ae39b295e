"""Tables: four bundled ones, and the user's own as CSV or Parquet. Columns become float32 features, fitted on the training split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from components.data.arrays import PARTS, ArrayData, Samples
from components.data.base import Batch
from components.data.files import bundled, check_rows, existing_file, require_columns
from components.validation import require, require_choice

if TYPE_CHECKING:  # pandas takes half a second to import: only where a table is read
    import pandas as pd

MAX_LABELS = 100  # kind=auto takes a column of whole numbers for classes up to this many different values


class TableEncoder:
    """Columns of a DataFrame -> float32 features; medians, means and categories come from the training split.

    Numbers (and true/false): missing ones are replaced by the median, then all are standardised. Texts: one column per category
    (one-hot); a category that training does not have, and a missing one, give zeros.

    Args:
        missing_indicator: adds a 0/1 column for every column in which training has missing values.
        max_categories: more different texts than this in one column are refused.

    Attributes:
        feature_names: names of the features, e.g. ``age``, ``city=Paris``, ``age is missing``.
    """

    def __init__(self, *, missing_indicator: bool = False, max_categories: int = 100) -> None:
        require(max_categories >= 1, "max_categories must be >= 1", max_categories)
        self.missing_indicator, self.max_categories = missing_indicator, max_categories
        self.columns: list[dict[str, Any]] = []

    @property
    def feature_names(self) -> list[str]:
        names: list[str] = []
        for column in self.columns:
            names += [f"{column['name']}={c}" for c in column["categories"]] if column["kind"] == "category" else [column["name"]]
            names += [f"{column['name']} is missing"] if column["indicator"] else []
        return names

    def fit(self, inputs: pd.DataFrame) -> None:
        require(inputs.shape[1] > 0, "the table has no input columns beside the target")
        self.columns = [self._fit_column(str(name), inputs[name]) for name in inputs.columns]

    def transform(self, inputs: pd.DataFrame) -> Tensor:
        inputs = inputs.rename(columns=str)
        require_columns([c["name"] for c in self.columns], list(inputs.columns), "the inputs")
        features = [f for column in self.columns for f in self._features(column, inputs[column["name"]])]
        return torch.from_numpy(np.stack(features, axis=1).astype(np.float32)) if features else torch.empty(len(inputs), 0)

    def state_dict(self) -> dict[str, Any]:
        return {"columns": [dict(c) for c in self.columns]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.columns = [dict(c) for c in state["columns"]]

    def _fit_column(self, name: str, values: pd.Series) -> dict[str, Any]:
        from pandas.api.types import is_bool_dtype, is_numeric_dtype

        missing = values.isna()
        require(not bool(missing.all()), f"column {name!r} has no value in the training split: drop it with data.drop=[{name}]")
        column: dict[str, Any] = {"name": name, "indicator": bool(self.missing_indicator and missing.any())}
        if is_numeric_dtype(values.dtype) or is_bool_dtype(values.dtype):
            numbers = self._numbers(name, values)
            median = float(np.nanmedian(numbers))
            filled = np.where(np.isnan(numbers), median, numbers)
            std = float(filled.std())
            mean = float(filled.mean())
            return column | {"kind": "number", "median": median, "mean": mean, "std": std if std > 1e-12 * max(abs(mean), 1e-12) else 1.0}
        categories = sorted({label_name(v) for v in values[~missing]})
        if len(categories) > self.max_categories:
            raise ValueError(
                f"column {name!r} has {len(categories)} different texts, such as {categories[0]!r} (data.max_categories={self.max_categories}): "
                f"leave it out with data.drop=[{name}]{self._not_a_number(values)}"
            )
        return column | {"kind": "category", "categories": categories}

    def _features(self, column: Mapping[str, Any], values: pd.Series) -> list[np.ndarray]:
        missing = values.isna().to_numpy()
        indicator = [missing.astype(np.float64)] if column["indicator"] else []
        if column["kind"] == "category":
            texts = np.array(["" if lost else label_name(v) for v, lost in zip(values, missing, strict=True)], dtype=object)
            return [((texts == c) & ~missing).astype(np.float64) for c in column["categories"]] + indicator
        numbers = self._numbers(column["name"], values)
        filled = np.where(np.isnan(numbers), column["median"], numbers)
        return [(filled - column["mean"]) / column["std"], *indicator]

    @staticmethod
    def _numbers(name: str, values: pd.Series) -> np.ndarray:
        import pandas as pd

        numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = (np.isnan(numbers) & ~values.isna().to_numpy()) | np.isinf(numbers)
        if wrong.any():
            first = int(wrong.argmax())
            where = f"row {values.index[first]} has {plain(values, first)} ({int(wrong.sum())} such rows)"
            raise ValueError(f"column {name!r} must hold finite numbers, but {where}")
        return numbers

    @staticmethod
    def _not_a_number(values: pd.Series) -> str:
        """A hint for a column of numbers that one stray text has turned into a column of texts."""
        import pandas as pd

        given = values.dropna()
        wrong = given[pd.to_numeric(given, errors="coerce").isna()]
        if len(wrong) > len(given) / 2:
            return ""
        return f"; or, if it is meant to hold numbers, mend {len(wrong)} values, first {plain(wrong, 0)} in row {wrong.index[0]}"


class Table(ArrayData):
    """Base of tables: a DataFrame and the names of its target columns.

    Args:
        missing_indicator, max_categories: see :class:`TableEncoder`.
        **common: see :class:`~components.data.arrays.ArrayData` and :class:`~components.data.base.DataModule`.
    """

    def __init__(self, *, missing_indicator: bool = False, max_categories: int = 100, **common: Any) -> None:
        self.table_encoder = TableEncoder(missing_indicator=missing_indicator, max_categories=max_categories)
        super().__init__(self.table_encoder, **common)

    @property
    def feature_names(self) -> list[str]:
        return self.table_encoder.feature_names

    def read_inputs(self, path: str | Path) -> Batch:
        """Features of a new CSV or Parquet file; further columns, the target's among them, are ignored.

        Raises:
            ValueError: the file lacks columns that training had, or has texts where training had numbers.
        """
        return self.encoded(read_table(path, "input"))


class BreastCancer(Table):
    """569 breast masses, 30 measurements of cell nuclei each, malignant or benign (Street, Wolberg & Mangasarian 1993; UCI, in scikit-learn)."""

    file: ClassVar[str] = "breast_cancer.csv"
    columns: ClassVar[tuple[str, ...]] = tuple(
        f"{prefix}{measure}{suffix}"
        for prefix, suffix in (("mean ", ""), ("", " error"), ("worst ", ""))
        for measure in (
            "radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points", "symmetry", "fractal dimension",
        )
    )  # fmt: skip

    def read(self) -> Samples:
        return bundled_classes(self.file, self.columns)


class Wine(BreastCancer):
    """178 wines of three cultivars, 13 chemical measurements each (Forina et al. 1991; UCI, in scikit-learn)."""

    file = "wine_data.csv"
    columns = (
        "alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols", "flavanoids", "nonflavanoid_phenols", "proanthocyanins",
        "color_intensity", "hue", "od280/od315_of_diluted_wines", "proline",
    )  # fmt: skip


class Iris(BreastCancer):
    """150 irises of three species, 4 measurements each (Fisher 1936; in scikit-learn)."""

    file = "iris.csv"
    columns = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")


class Diabetes(Table):
    """442 patients, 10 measurements each; the target is disease progression after a year (Efron et al. 2004; in scikit-learn).

    The raw measurements are read, not scikit-learn's version, which was standardised over all samples, test ones included.
    """

    columns: ClassVar[tuple[str, ...]] = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")

    def read(self) -> Samples:
        import pandas as pd

        frame = pd.DataFrame(np.loadtxt(bundled("sklearn", "datasets/data/diabetes_data_raw.csv.gz")), columns=list(self.columns))
        target = np.loadtxt(bundled("sklearn", "datasets/data/diabetes_target.csv.gz"))
        return Samples(frame, torch.from_numpy(target).unsqueeze(1), "real", [])


class TableFile(Table):
    """Base of the user's own tables.

    Args:
        path: the file.
        target: name of the target column, or a list: several 0/1 columns are labels (multi-label), several others are values.
        kind: ``class``: the target's values are classes; ``real``: they are numbers to predict; ``auto``: texts, true/false and
            whole numbers of at most 100 different values are classes, everything else is real.
        drop: columns that are no inputs.
        split: name of a column that says ``train``, ``val`` or ``test`` for each row; default: split at random.
        **common: see :class:`Table`.
    """

    def __init__(
        self, path: str, target: str | Sequence[str], *, kind: str = "auto", drop: Sequence[str] = (), split: str | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        require_choice("kind", kind, ("auto", "class", "real"))
        self.path = path
        self.target = [target] if isinstance(target, str) else [str(t) for t in target]
        require(len(self.target) > 0, "target must name a column")
        self.kind = kind
        self.drop = list(drop)
        self.split_column = split

    def read_frame(self, path: Path) -> pd.DataFrame:
        raise NotImplementedError

    def read(self) -> Samples:
        frame = self.read_frame(existing_file(self.path, "data.path"))
        require(len(frame) > 0, f"data.path: the table {self.path!r} has no rows")
        names = list(frame.columns)
        hint = f" (it has one column: is data.separator={getattr(self, 'separator', ',')!r} right?)" if len(names) == 1 else ""
        require_columns(self.target, names, "data.target" + hint)
        require_columns(self.drop, names, "data.drop")
        target, kind, classes = read_target(frame, self.target, self.kind, self.known_classes if self._saved else [])
        part = None
        if self.split_column is not None:
            require_columns([self.split_column], names, "data.split")
            part = split_names(frame[self.split_column])
        inputs = frame.drop(columns=[*self.target, *self.drop, *([self.split_column] if self.split_column else [])])
        return Samples(inputs, target, kind, classes, part)


class Csv(TableFile):
    """A delimited text file with a header; see :class:`TableFile`.

    Args:
        separator: between two fields.

    Raises:
        ValueError: a row with another number of fields than the header (with its line), a missing column, a wrong target.
    """

    def __init__(self, path: str, target: str | Sequence[str], *, separator: str = ",", **common: Any) -> None:
        super().__init__(path, target, **common)
        require(len(separator) == 1, "separator must be one character", separator)
        self.separator = separator

    def read_frame(self, path: Path) -> pd.DataFrame:
        return read_csv(path, self.separator)

    def read_inputs(self, path: str | Path) -> Batch:
        return self.encoded(read_table(path, "input", self.separator))


class Parquet(TableFile):
    """A Parquet file; see :class:`TableFile`."""

    def read_frame(self, path: Path) -> pd.DataFrame:
        return read_parquet(path)


# -- reading -----------------------------------------------------------------------------------------------------------
def bundled_classes(file: str, columns: Sequence[str]) -> Samples:
    """A classification table of scikit-learn's: a line with counts and class names, then rows that end with the class."""
    import pandas as pd

    path = bundled("sklearn", f"datasets/data/{file}")
    with path.open() as lines:
        names = next(lines).strip().split(",")[2:]
    values = np.loadtxt(path, delimiter=",", skiprows=1)
    return Samples(pd.DataFrame(values[:, :-1], columns=list(columns)), torch.from_numpy(values[:, -1]).long(), "multiclass", names)


def read_table(path: str | Path, argument: str, separator: str = ",") -> pd.DataFrame:
    """A new table, by its ending: ``.parquet``, else delimited text."""
    found = existing_file(path, argument)
    frame = read_parquet(found) if found.suffix in (".parquet", ".pq") else read_csv(found, separator)
    require(len(frame) > 0, f"{argument}: the table {str(path)!r} has no rows")
    return frame


def read_csv(path: Path, separator: str) -> pd.DataFrame:
    """A delimited text file with a header, every row of which has been looked at."""
    import pandas as pd

    header = check_rows(path, separator)
    require(bool(header), f"{path} has no header")
    frame = pd.read_csv(path, sep=separator, encoding="utf-8-sig", index_col=False, low_memory=False)
    return frame.rename(columns=str)


def read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path).rename(columns=str).reset_index(drop=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no readable Parquet file: {error}") from error


def split_names(column: pd.Series) -> list[str]:
    """``train``, ``val`` or ``test`` for each row; ``valid`` and ``validation`` are understood."""
    names = [{"valid": "val", "validation": "val"}.get(str(v).strip().lower(), str(v).strip().lower()) for v in column]
    unknown = sorted({n for n in names if n not in PARTS})
    require(not unknown, f"the split column {column.name!r} must say train, val or test", unknown[:5])
    require("train" in names, f"the split column {column.name!r} names no training row")
    return names


# -- targets -------------------------------------------------------------------------------------------------------------
def read_target(frame: pd.DataFrame, columns: Sequence[str], kind: str, known: Sequence[str] = ()) -> tuple[Tensor, str, list[str]]:
    """Target columns of a table as (tensor, target kind, class names).

    Args:
        frame: the table.
        columns: names of the target columns.
        kind: ``auto``, ``class`` or ``real``.
        known: class names of a finished run, whose numbers the labels then get.
    """
    require_no_missing(frame, columns)
    if len(columns) > 1:
        numbers = np.stack([as_numbers(frame[c]) for c in columns], axis=1)
        binary = bool(np.isin(numbers, (0, 1)).all())
        require(kind != "class" or binary, f"several target columns are labels only if they hold 0 and 1: {', '.join(columns)} hold other values")
        if binary and kind != "real":
            return torch.from_numpy(numbers).long(), "multilabel", list(columns)
        return torch.from_numpy(numbers), "real", []
    values = frame[columns[0]]
    if kind == "real" or (kind == "auto" and continuous(values)):
        return torch.from_numpy(as_numbers(values)).unsqueeze(1), "real", []
    if continuous(values) and not classes_likely(as_numbers(values)):
        raise ValueError(
            f"the target column {columns[0]!r} is continuous ({values.nunique()} different values, such as {plain(values, 0)}), so it cannot be classes: "
            "data.kind=real task=regression"
        )
    labels = [label_name(v) for v in values]
    names = list(known) or sorted(set(labels), key=label_order)
    index = {name: i for i, name in enumerate(names)}
    unknown = sorted(set(labels) - set(names))
    require(not unknown, f"label out of range: the target column {columns[0]!r} has {', '.join(map(repr, unknown[:5]))}; the classes are {', '.join(names)}")
    return torch.tensor([index[label] for label in labels]), "multiclass", names


def require_no_missing(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise if a target column has missing values: how many, and where the first one is."""
    for name in columns:
        missing = frame[name].isna().to_numpy()
        if missing.any():
            first = int(missing.argmax())
            raise ValueError(f"the target column {name!r} has {int(missing.sum())} missing values (NaN), first in row {first} (rows count from 0)")


def continuous(values: pd.Series) -> bool:
    """Whether a column of numbers looks like measurements rather than classes."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if is_bool_dtype(values.dtype) or not is_numeric_dtype(values.dtype):
        return False
    return not classes_likely(values.to_numpy(dtype=np.float64)) or values.nunique() > MAX_LABELS


def classes_likely(numbers: np.ndarray) -> bool:
    """Whole numbers, of which at most half are different (or 20)."""
    return bool((numbers == np.round(numbers)).all()) and len(np.unique(numbers)) <= max(20, numbers.size // 2)


def as_numbers(values: pd.Series) -> np.ndarray:
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    wrong = ~np.isfinite(numbers)
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(
            f"the target column {values.name!r} must hold finite numbers to be predicted as values, but row {first} has {plain(values, first)} "
            f"({int(wrong.sum())} such rows); for classes: data.kind=class task=classification"
        )
    return numbers


def plain(values: pd.Series, position: int) -> str:
    """A value as a Python literal, for errors: ``inf``, not ``np.float64(inf)``."""
    return repr(values.iloc[[position]].tolist()[0])


def label_name(value: Any) -> str:
    """Name of a label: ``1.0`` (a column of whole numbers that pandas read as float) and ``1`` are the same class."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def label_order(name: str) -> tuple[int, float, str]:
    """Numbers by value, then texts."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
