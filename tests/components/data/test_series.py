from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.datasets as theirs
import torch

from components.data import Co2, ElNino, Macrodata, Series, Sunspots
from components.data.series import carry_forward


class Count(Series):
    """0, 1, 2, … beside its negative: a window's values say where it lies."""

    def read_series(self) -> tuple[np.ndarray, list[str]]:
        steps = np.arange(100.0)
        return np.stack([steps, -steps], axis=1), ["up", "down"]


def ready(**options: Any) -> Count:
    data = Count(**{"history": 8, "horizon": 3, "batch_size": 1, "val_fraction": 0.2, "test_fraction": 0.1} | options)
    data.setup()
    return data


def steps(data: Series, values: torch.Tensor) -> list[list[int]]:
    return data.to_units(values)[..., 0].round().int().tolist()


def test_windows_are_consecutive_and_split_by_time() -> None:
    data = ready()
    assert {name: len(rows) for name, rows in data.rows.items()} == {"train": 70 - 8 - 3 + 1, "val": 20 - 3 + 1, "test": 10 - 3 + 1}
    for part, first, last in (("train", 8, 69), ("val", 70, 89), ("test", 90, 99)):
        batch = data.fetch(part, torch.arange(len(data.rows[part])))
        history, future = steps(data, batch["history"]), steps(data, batch["target"])
        assert future[0][0] == first and future[-1][-1] == last, "all of the forecast lies in its part"
        for past, after in zip(history, future, strict=True):
            assert past + after == list(range(past[0], past[0] + 11))
        assert torch.equal(batch["inputs"], batch["history"])
    assert data.facts()["in_channels"] == data.facts()["num_targets"] == 2


def test_windows_are_views() -> None:
    data = ready()
    train = data.splits["train"]["inputs"]
    assert train.untyped_storage().nbytes() == 100 * 2 * 4


def test_scale_comes_from_the_training_part() -> None:
    data = ready()
    assert data.target_scale is not None
    assert data.target_scale[0].tolist() == [34.5, -34.5]
    assert data.target_scale[1].tolist() == pytest.approx([np.arange(70).std()] * 2)


def test_later_values_change_nothing_for_training() -> None:
    class Other(Count):
        def read_series(self) -> tuple[np.ndarray, list[str]]:
            values, names = super().read_series()
            values[70:] = 1e6
            return values, names

    data, other = ready(), Other(history=8, horizon=3, batch_size=1, val_fraction=0.2, test_fraction=0.1)
    other.setup()
    assert torch.equal(data.splits["train"]["inputs"], other.splits["train"]["inputs"])
    assert torch.equal(data.splits["train"]["target"], other.splits["train"]["target"])


def test_missing_values_repeat_the_last_observed_one() -> None:
    values = np.array([[1.0, 5.0], [np.nan, 6.0], [np.nan, np.nan], [4.0, 8.0]])
    assert carry_forward(values).tolist() == [[1, 5], [1, 6], [1, 6], [4, 8]]
    with pytest.raises(ValueError, match="must not start with a missing value"):
        carry_forward(values[1:])


def test_series_are_statsmodels() -> None:
    co2 = Co2().read_series()[0][:, 0]
    assert np.array_equal(co2, theirs.co2.load().data["co2"].to_numpy(), equal_nan=True)
    assert np.array_equal(Sunspots().read_series()[0][:, 0], theirs.sunspots.load().data["SUNACTIVITY"].to_numpy())
    assert np.array_equal(ElNino().read_series()[0][:, 0], theirs.elnino.load().data.iloc[:, 1:].to_numpy().flatten())
    macro, table = Macrodata().read_series()[0], theirs.macrodata.load().data
    assert macro.shape == (202, 9) and np.allclose(macro[:, 0], 100 * np.diff(np.log(table["realgdp"])))
    assert np.allclose(macro[:, 8], table["unemp"][1:])


def test_missing_weeks_are_as_many_as_the_docstring_says() -> None:
    assert int(np.isnan(Co2().read_series()[0]).sum()) == 59


def test_errors() -> None:
    with pytest.raises(ValueError, match="history \\+ horizon must be at most the 70 time steps of the training part, but got 73"):
        ready(history=70)
    with pytest.raises(ValueError, match="horizon must be at most the 10 time steps of the test part, but got 11"):
        ready(horizon=11)
    with pytest.raises(ValueError, match="history must be >= 1"):
        ready(history=0)
    with pytest.raises(ValueError, match="imbalance needs a target with one class per sample"):
        ready(imbalance=10)


def test_without_validation_and_test() -> None:
    data = ready(val_fraction=0.0, test_fraction=0.0)
    assert data.size(data.splits["val"]) == 0 and data.splits["test"]["target"].shape == (0, 3, 2)
    assert list(data.val_dataloader()) == []
