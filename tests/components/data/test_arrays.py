from __future__ import annotations

from typing import Any

import pytest
import torch

from components.data import ArrayData, Digits, Samples, TensorEncoder
from components.data.arrays import split_rows


class Given(ArrayData):
    """Hands on the samples that a test gives it."""

    def __init__(self, samples: Samples, **common: Any) -> None:
        super().__init__(TensorEncoder(standardise=True), batch_size=1, **common)
        self.samples = samples

    def read(self) -> Samples:
        return self.samples


def classes(target: list[int], names: int = 3, part: list[str] | None = None) -> Samples:
    return Samples(torch.randn(len(target), 2), torch.tensor(target), "multiclass", [f"c{i}" for i in range(names)], part)


def test_splits_are_stratified_and_of_the_right_size() -> None:
    strata = torch.cat([torch.full((n,), c) for c, n in enumerate((100, 60, 40))])
    rows = split_rows(strata, 200, 0.2, 0.1, seed=0)
    assert [torch.bincount(strata[rows[p]]).tolist() for p in ("train", "val", "test")] == [[70, 42, 28], [20, 12, 8], [10, 6, 4]]


def test_many_small_classes_still_give_whole_splits() -> None:
    strata = torch.arange(300) // 3  # a tenth of three samples is less than one
    rows = split_rows(strata, 300, 0.1, 0.1, seed=0)
    assert (len(rows["val"]), len(rows["test"])) == (30, 30)
    assert len(strata[rows["train"]].unique()) == 100, "no class is missing from training"


def test_standardisation_comes_from_the_training_split() -> None:
    data = Digits(standardise=True)
    data.setup()
    train, test = data.splits["train"]["inputs"], data.splits["test"]["inputs"]
    assert float(train.mean()) == pytest.approx(0, abs=1e-5) and float(train.std(correction=0)) == pytest.approx(1, abs=1e-4)
    raw = Digits()
    raw.setup()
    plain = raw.splits["train"]["inputs"]
    assert torch.allclose(test, (raw.splits["test"]["inputs"] - plain.mean()) / plain.std(correction=0), atol=1e-5)


def test_a_constant_column_is_centred_only() -> None:
    encoder = TensorEncoder(standardise=True)
    inputs = torch.tensor([[1.0, 1e6], [3.0, 1e6]])
    encoder.fit(inputs)
    assert encoder.transform(inputs).tolist() == [[-1, 0], [1, 0]]


def test_given_parts_are_used_and_missing_ones_drawn() -> None:
    data = Given(classes([0, 1] * 50, 2, ["train"] * 80 + ["test"] * 20), val_fraction=0.25)
    data.setup()
    assert data.rows["test"].tolist() == list(range(80, 100))
    assert len(data.rows["val"]) == 20 and int(data.rows["val"].max()) < 80


def test_a_class_that_validation_has_and_training_has_not() -> None:
    with pytest.raises(ValueError, match="the val split has 'c2', a class that the training split does not have"):
        Given(classes([0, 1, 0, 1, 2], 3, ["train"] * 4 + ["val"])).setup()


def test_one_class_only() -> None:
    with pytest.raises(ValueError, match=r"one class only \('c0'\); classification needs two or more"):
        Given(classes([0] * 10)).setup()


@pytest.mark.parametrize("wrong", [3, -1])
def test_label_out_of_range(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"label out of range: 1 labels are not in 0 … 2, first {wrong} in sample 4"):
        Given(classes([0, 1, 2, 0, wrong, 1])).setup()


def test_labels_must_be_bits() -> None:
    samples = Samples(torch.randn(4, 2), torch.tensor([[0, 1], [1, 0], [2, 0], [0, 0]]), "multilabel", ["a", "b"])
    with pytest.raises(ValueError, match=r"label out of range: .* first 2 in sample 2"):
        Given(samples).setup()


def test_nan_in_a_real_target() -> None:
    target = torch.arange(10.0).unsqueeze(1)
    target[[3, 7]] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite values in 2 samples, first in sample 3"):
        Given(Samples(torch.randn(10, 2), target, "real", [])).setup()


def test_nan_in_the_inputs() -> None:
    samples = classes([0, 1] * 10, 2)
    samples.inputs[5, 1] = float("inf")
    with pytest.raises(ValueError, match="inputs have NaN or infinite values in 1 samples"):
        Given(samples).setup()


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Given(classes([])).setup()


class TestHoldout:
    def test_validation_and_test_hold_the_held_out_classes_alone(self) -> None:
        data = Digits(holdout_classes=[2, "7", 9])
        data.setup()
        assert data.splits["train"]["target"].unique().tolist() == list(range(7))
        assert data.splits["val"]["target"].unique().tolist() == data.splits["test"]["target"].unique().tolist() == [7, 8, 9]
        facts = data.facts()
        assert (facts["num_classes"], facts["class_names"]) == (7, ["0", "1", "3", "4", "5", "6", "8"])
        assert sum(data.size(s) for s in data.splits.values()) == 1797, "every sample is in one split"

    def test_targets_keep_their_order(self) -> None:
        plain, data = Digits(val_fraction=0.0, test_fraction=0.0), Digits(holdout_classes=[0, 1])
        plain.setup()
        data.setup()
        digits = plain.splits["train"]["target"]
        assert torch.equal(digits[data.rows["train"]], data.splits["train"]["target"] + 2)
        assert torch.equal(digits[data.rows["val"]], data.splits["val"]["target"] - 8)

    @pytest.mark.parametrize(
        ("held", "message"),
        [
            ([9], "two classes or more"),
            ([0, 10], r"in 0 … 9, but got 10"),
            (["0", "nine"], "no class 'nine'"),
            (list(range(9)), "must leave two classes"),
        ],
    )
    def test_wrong_classes(self, held: list[int | str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Digits(holdout_classes=held).setup()

    def test_needs_one_class_a_sample(self) -> None:
        samples = Samples(torch.randn(10, 2), torch.randn(10, 1).double(), "real", [])
        with pytest.raises(ValueError, match="holdout_classes needs a target with one class per sample"):
            Given(samples, holdout_classes=[0, 1]).setup()
