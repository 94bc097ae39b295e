"""Time series to forecast: windows of the past and what came after them, split by time."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from components.data.arrays import mean_and_std
from components.data.base import Batch, DataModule, Split
from components.data.files import bundled
from components.validation import require


class Series(DataModule):
    """Base of time series: give it :meth:`read_series`, (T, C) values in order of time.

    The last ``test_fraction`` of the time steps is the test part, the ``val_fraction`` before it the validation part. A window
    belongs to the part in which all of its forecast lies; its history may reach back into an earlier part, never forward. Every
    window of a part is a sample. Values are standardised per series by mean and standard deviation of the training part.

    A batch has ``inputs`` = ``history`` (N, L, C) and ``target`` (N, H, C). ``fraction`` and ``label_noise`` act on windows (a
    wrong target is another window's future), ``missing`` on the values of training histories.

    Args:
        history: L, observed steps before the forecast.
        horizon: H, steps to forecast.
        **common: see :class:`~components.data.base.DataModule`; ``split_seed`` has no effect, time splits.

    Raises:
        ValueError: a part is too short for one window.
    """

    channel_dim: ClassVar[int] = -1

    def __init__(self, *, history: int, horizon: int, **common: Any) -> None:
        super().__init__(**common)
        require(history >= 1, "history must be >= 1", history)
        require(horizon >= 1, "horizon must be >= 1", horizon)
        self.history, self.horizon = history, horizon
        self.target_kind = "real"
        self.series_names: list[str] = []

    def read_series(self) -> tuple[np.ndarray, list[str]]:
        """Values (T, C) in order of time, and the name of each series."""
        raise NotImplementedError

    def load(self) -> tuple[Split, Split, Split]:
        values, self.series_names = self.read_series()
        series = torch.from_numpy(carry_forward(values))
        total = len(series)
        test = round(self.test_fraction * total)
        val = round(self.val_fraction * total)
        train = total - val - test
        require(
            train >= self.history + self.horizon,
            f"history + horizon must be at most the {train} time steps of the training part",
            self.history + self.horizon,
        )
        for name, steps in (("val", val), ("test", test)):
            require(steps == 0 or steps >= self.horizon, f"horizon must be at most the {steps} time steps of the {name} part", self.horizon)
        if self.target_scale is None:
            mean, std = mean_and_std(series[:train], [0])
            self.target_scale = mean[0].float(), std[0].float()
        standardised = ((series - self.target_scale[0]) / self.target_scale[1]).float()
        starts = {"train": (self.history, train), "val": (train, train + val), "test": (train + val, total)}
        self.rows = {name: torch.arange(first, max(first, end - self.horizon + 1)) for name, (first, end) in starts.items()}
        first, second, third = (self.windows(standardised, rows) for rows in self.rows.values())
        return first, second, third

    def windows(self, series: Tensor, starts: Tensor) -> Split:
        """Windows whose forecasts start at the consecutive time steps ``starts``: views of the series, not copies."""
        if len(starts) == 0:
            return {"inputs": series.new_empty(0, self.history, series.shape[1]), "target": series.new_empty(0, self.horizon, series.shape[1])}
        first, last = int(starts[0]), int(starts[-1])
        past = series[first - self.history : last].unfold(0, self.history, 1)
        future = series[first : last + self.horizon].unfold(0, self.horizon, 1)
        return {"inputs": past.transpose(1, 2), "target": future.transpose(1, 2)}

    def fetch(self, split: str, index: Tensor) -> Batch:
        batch = super().fetch(split, index)
        return batch | {"history": batch["inputs"]}

    def input_facts(self, train: Split) -> dict[str, Any]:
        channels = train["inputs"].shape[2]
        return {"input_shape": (self.history, channels), "history_length": self.history, "horizon": self.horizon, "in_channels": channels}


class Co2(Series):
    """CO2 in the air over Mauna Loa, ppm, 2,284 weeks from 1958 to 2001; the 59 missing ones repeat the week before them.

    Args:
        history, horizon, **common: see :class:`Series`.

    Source:
        Keeling & Whorf, Scripps Institution of Oceanography, 2004; in statsmodels.
    """

    def __init__(self, *, history: int = 104, horizon: int = 26, **common: Any) -> None:
        super().__init__(history=history, horizon=horizon, **common)

    def read_series(self) -> tuple[np.ndarray, list[str]]:
        return read_columns("co2/co2.csv", ["co2"]), ["co2"]


class Sunspots(Series):
    """Mean number of sunspots, 309 years from 1700 to 2008; a cycle lasts about eleven.

    Args:
        history, horizon, **common: see :class:`Series`.

    Source:
        SIDC, Royal Observatory of Belgium; in statsmodels.
    """

    def __init__(self, *, history: int = 33, horizon: int = 11, **common: Any) -> None:
        super().__init__(history=history, horizon=horizon, **common)

    def read_series(self) -> tuple[np.ndarray, list[str]]:
        return read_columns("sunspots/sunspots.csv", ["SUNACTIVITY"]), ["sunspots"]


class ElNino(Series):
    """Sea surface temperature of the eastern Pacific (El Niño region 1 + 2), °C, 732 months from 1950 to 2010.

    Args:
        history, horizon, **common: see :class:`Series`.

    Source:
        NOAA Climate Prediction Center; in statsmodels.
    """

    months: ClassVar[tuple[str, ...]] = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")

    def __init__(self, *, history: int = 36, horizon: int = 12, **common: Any) -> None:
        super().__init__(history=history, horizon=horizon, **common)

    def read_series(self) -> tuple[np.ndarray, list[str]]:
        return read_columns("elnino/elnino.csv", list(self.months)).reshape(-1, 1), ["temperature"]


class Macrodata(Series):
    """Nine quarterly series of the United States' economy, 202 quarters from 1959 to 2009: a multivariate set.

    Growth in per cent (100 · difference of logarithms) of real GDP, consumption, investment, government spending, disposable
    income and money (M1); inflation, the three-month treasury bill rate and unemployment in per cent.

    Args:
        history, horizon, **common: see :class:`Series`.

    Source:
        Federal Reserve Bank of St. Louis (FRED); in statsmodels.
    """

    growing: ClassVar[tuple[str, ...]] = ("realgdp", "realcons", "realinv", "realgovt", "realdpi", "m1")
    rates: ClassVar[tuple[str, ...]] = ("infl", "tbilrate", "unemp")

    def __init__(self, *, history: int = 20, horizon: int = 4, **common: Any) -> None:
        super().__init__(history=history, horizon=horizon, **common)

    def read_series(self) -> tuple[np.ndarray, list[str]]:
        growth = 100 * np.diff(np.log(read_columns("macrodata/macrodata.csv", list(self.growing))), axis=0)
        rates = read_columns("macrodata/macrodata.csv", list(self.rates))[1:]
        return np.concatenate([growth, rates], axis=1), [*self.growing, *self.rates]


def read_columns(file: str, columns: list[str]) -> np.ndarray:
    """Columns of one of statsmodels' CSV files as (T, columns), NaN where a field is empty."""
    path = bundled("statsmodels", f"datasets/{file}")
    with path.open() as lines:
        header = [name.strip('"\n ') for name in next(lines).split(",")]
    return np.genfromtxt(path, delimiter=",", skip_header=1, usecols=[header.index(c) for c in columns]).reshape(-1, len(columns))


def carry_forward(values: np.ndarray) -> np.ndarray:
    """Missing values repeat the last observed one: unlike interpolation, this knows nothing of the future."""
    missing = np.isnan(values)
    require(not bool(missing[0].any()), "a series must not start with a missing value")
    last = np.maximum.accumulate(np.where(missing, 0, np.arange(len(values))[:, None]), axis=0)
    return np.take_along_axis(values, last, axis=0)
