from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets
import torch

from components.data import BreastCancer, Csv, Diabetes, Iris, Parquet, Wine

from .conftest import people

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A text or a DataFrame as a CSV file; gives its path."""

    def writer(content: str | pd.DataFrame, name: str = "table.csv") -> str:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else content.to_csv(index=False))
        return str(path)

    return writer


def ready(path: str, target: Any = "churned", **options: Any) -> Csv:
    data = Csv(path, target, **{"batch_size": 1} | options)
    data.setup()
    return data


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(BreastCancer, sklearn.datasets.load_breast_cancer), (Wine, sklearn.datasets.load_wine), (Iris, sklearn.datasets.load_iris)],
)
def test_bundled_tables_are_scikit_learns(ours: Any, theirs: Any) -> None:
    bunch, samples = theirs(), ours().read()
    assert np.array_equal(samples.inputs.to_numpy(), bunch.data) and samples.target.tolist() == bunch.target.tolist()
    assert list(samples.inputs.columns) == list(bunch.feature_names) and samples.class_names == list(bunch.target_names)


def test_diabetes_is_scikit_learns_raw_table() -> None:
    bunch, samples = sklearn.datasets.load_diabetes(scaled=False), Diabetes().read()
    assert np.array_equal(samples.inputs.to_numpy(), bunch.data) and list(samples.inputs.columns) == bunch.feature_names
    assert samples.target.flatten().tolist() == bunch.target.tolist()


class TestFeatures:
    def test_columns(self, write: Write) -> None:
        data = ready(write(people()), drop=["id"], missing_indicator=True)
        assert data.feature_names == [
            "age", "age is missing", "city=Oslo", "city=Paris", "city=Rome", "city is missing", "member", "income", "likes_tea", "likes_coffee",
        ]  # fmt: skip
        assert data.facts()["num_features"] == 10 and data.class_names == ["no", "yes"]

    def test_numbers_are_imputed_by_the_median_and_standardised_by_training_alone(self, write: Write) -> None:
        frame = people()
        data = ready(write(frame), drop=["id"])
        ages = frame["age"].to_numpy()
        train = ages[data.rows["train"].numpy()]
        filled = np.where(np.isnan(ages), np.nanmedian(train), ages)
        mean, std = filled[data.rows["train"].numpy()].mean(), filled[data.rows["train"].numpy()].std()
        for part in ("train", "val", "test"):
            expected = (filled[data.rows[part].numpy()] - mean) / std
            assert np.allclose(data.splits[part]["inputs"][:, 0].numpy(), expected, atol=1e-5)

    def test_an_unknown_category_and_a_missing_one_are_zeros(self, write: Write) -> None:
        data = ready(write(people()), drop=["id"])
        new = people().drop(columns=["churned"])
        new.loc[0, "city"], new.loc[1, "city"] = "Lima", None
        city = data.read_inputs(write(new, "new.csv"))["inputs"][:, 1:4]
        assert city[:2].tolist() == [[0, 0, 0]] * 2 and city[4:].sum(1).tolist() == [1.0] * 116

    def test_whole_numbers_and_their_floats_are_the_same_category(self, write: Write) -> None:
        frame = pd.DataFrame({"code": ["1", "2", "x", "1"] * 10, "churned": [0, 1] * 20})
        data = ready(write(frame), split_seed=1)
        new = data.read_inputs(write("code\n1\n\n2\n", "new.csv"))
        assert data.feature_names == ["code=1", "code=2", "code=x"] and new["inputs"].tolist() == [[1, 0, 0], [0, 1, 0]]

    def test_many_texts_are_refused_with_the_stray_one(self, write: Write) -> None:
        with pytest.raises(ValueError, match=r"column 'id' has .* different texts.*data.drop=\[id\]$"):
            ready(write(people(200)))
        frame = people(200).assign(id=[str(i) for i in range(199)] + ["n/k"])
        with pytest.raises(ValueError, match="mend 1 values, first 'n/k' in row 199"):
            ready(write(frame), val_fraction=0.0, test_fraction=0.0)

    def test_infinite_and_empty_columns(self, write: Write) -> None:
        frame = people()
        frame.loc[7, "income"] = np.inf
        with pytest.raises(ValueError, match="column 'income' must hold finite numbers, but row 7 has inf"):
            ready(write(frame), drop=["id"])
        with pytest.raises(ValueError, match="column 'void' has no value in the training split"):
            ready(write(people().assign(void=np.nan)), drop=["id"])

    def test_separator(self, write: Write, tmp_path: Path) -> None:
        people().to_csv(tmp_path / "semicolons.csv", sep=";", index=False)
        path = str(tmp_path / "semicolons.csv")
        assert ready(path, separator=";", drop=["id"]).facts()["num_samples"] == 84
        with pytest.raises(ValueError, match=r"it has one column: is data.separator=',' right"):
            ready(path)


class TestTarget:
    def test_kinds(self, write: Write) -> None:
        path = write(people())
        assert ready(path, "income", drop=["id"]).facts()["target_kind"] == "real"
        assert ready(path, "likes_tea", drop=["id"]).facts()["target_kind"] == "multiclass"
        assert ready(path, "likes_tea", drop=["id"], kind="real").facts()["num_targets"] == 1
        assert ready(path, "member", drop=["id"]).class_names == ["False", "True"]
        several = ready(path, ["likes_tea", "likes_coffee"], drop=["id"]).facts()
        assert (several["target_kind"], several["class_names"]) == ("multilabel", ["likes_tea", "likes_coffee"])
        assert ready(path, ["income", "likes_tea"], drop=["id"]).facts()["num_targets"] == 2

    def test_classes_are_ordered_as_numbers(self, write: Write) -> None:
        data = ready(write(pd.DataFrame({"x": range(60), "churned": [10, 9, 2] * 20})))
        assert data.class_names == ["2", "9", "10"]

    def test_a_split_column(self, write: Write) -> None:
        parts = ["train"] * 100 + ["validation"] * 10 + ["test"] * 10
        data = ready(write(people().assign(part=parts)), drop=["id"], split="part")
        assert data.rows["val"].tolist() == list(range(100, 110)) and "part" not in " ".join(data.feature_names)
        with pytest.raises(ValueError, match="must say train, val or test, but got"):
            ready(write(people().assign(part="all")), drop=["id"], split="part")

    def test_a_class_that_validation_has_and_training_has_not(self, write: Write) -> None:
        frame = people().assign(part=["train"] * 100 + ["val"] * 20)
        frame.loc[110, "churned"] = "maybe"
        with pytest.raises(ValueError, match="the val split has 'maybe', a class that the training split does not have"):
            ready(write(frame), drop=["id"], split="part")


class TestErrors:
    def test_no_such_column(self, write: Write) -> None:
        with pytest.raises(ValueError, match=r"data.target: no column 'churn'; did you mean 'churned'\?; the columns are id, age, city"):
            ready(write(people()), "churn")
        with pytest.raises(ValueError, match=r"data.drop: no column 'ID'"):
            ready(write(people()), drop=["ID"])

    def test_nan_in_the_target(self, write: Write) -> None:
        frame = people()
        frame.loc[[4, 9], "churned"] = None
        with pytest.raises(ValueError, match=r"'churned' has 2 missing values \(NaN\), first in row 4"):
            ready(write(frame))

    def test_one_class_only(self, write: Write) -> None:
        with pytest.raises(ValueError, match=r"one class only \('yes'\)"):
            ready(write(people().assign(churned="yes")), drop=["id"])

    @pytest.mark.parametrize(("content", "message"), [("", "is empty"), ("age,churned\n", "has no rows"), ("\n\n", "has no header")])
    def test_empty_file(self, write: Write, content: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ready(write(content))

    @pytest.mark.parametrize(("row", "fields"), [("1,2", 2), ("1,2,3,4", 4)])
    def test_a_row_with_a_wrong_number_of_fields(self, write: Write, row: str, fields: int) -> None:
        with pytest.raises(ValueError, match=f"line 3: {fields} fields, but the header has 3: '{row}'"):
            ready(write(f"a,b,churned\n1,2,yes\n{row}\n"))

    def test_a_row_that_only_spans_lines_is_right(self, write: Write) -> None:
        data = ready(write('a,churned\n"one\ntwo",yes\nb,no\n' * 1 + '"one\ntwo",yes\nb,no\n' * 9))
        assert sum(data.size(s) for s in data.splits.values()) == 20

    def test_header_and_encoding(self, write: Write, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="the header has 'a' more than once"):
            ready(write("a,a,churned\n1,2,yes\n"))
        (tmp_path / "latin.csv").write_bytes("städt,churned\n1,ja\n".encode("latin-1"))
        with pytest.raises(ValueError, match="is not UTF-8 text"):
            ready(str(tmp_path / "latin.csv"))

    def test_texts_cannot_be_values(self, write: Write) -> None:
        with pytest.raises(ValueError, match=r"'churned' must hold finite numbers .* row 0 has '(yes|no)' \(120 such rows\)"):
            ready(write(people()), kind="real")

    def test_measurements_cannot_be_classes(self, write: Write) -> None:
        with pytest.raises(ValueError, match=r"'income' is continuous .*data.kind=real task=regression"):
            ready(write(people()), "income", kind="class")

    def test_several_class_columns_must_be_bits(self, write: Write) -> None:
        with pytest.raises(ValueError, match="several target columns are labels only if they hold 0 and 1"):
            ready(write(people()), ["income", "likes_tea"], kind="class")

    def test_missing_file(self, write: Write, tmp_path: Path) -> None:
        write(people(), "churn.csv")
        with pytest.raises(ValueError, match=r"data.path: there is no 'chrun.csv' in .*; did you mean 'churn.csv'\?"):
            ready(str(tmp_path / "chrun.csv"))
        with pytest.raises(ValueError, match="there is no 'nowhere' in"):
            ready(str(tmp_path / "nowhere" / "deep" / "churn.csv"))
        with pytest.raises(ValueError, match=r"must be a file, but .* is a folder"):
            ready(str(tmp_path))

    def test_batch_larger_than_the_data(self, write: Write) -> None:
        with pytest.raises(ValueError, match="batch_size must be at most the 84 training samples, but got 100"):
            ready(write(people()), drop=["id"], batch_size=100)

    def test_no_parquet(self, write: Write) -> None:
        with pytest.raises(ValueError, match="is no readable Parquet file"):
            Parquet(write(people(), "people.parquet"), "churned").setup()

    def test_no_input_column(self, write: Write) -> None:
        with pytest.raises(ValueError, match="no input columns"):
            ready(write("churned\nyes\nno\n" * 20))


class TestPrediction:
    def test_a_loaded_state_prepares_a_new_file_as_training_did(self, write: Write) -> None:
        data = ready(write(people()), drop=["id"])
        path = write(people().drop(columns=["churned", "id"]).iloc[data.rows["test"].numpy()], "new.csv")
        finished = Csv("gone.csv", "churned")
        finished.load_state_dict(data.state_dict())
        batch = finished.read_inputs(path)
        assert torch.equal(batch["inputs"], data.splits["test"]["inputs"]) and batch["index"].tolist() == list(range(18))
        assert finished.class_names == ["no", "yes"] and finished.facts() == data.facts()

    def test_columns_may_come_in_another_order_and_with_others(self, write: Write) -> None:
        data = ready(write(people()), drop=["id"])
        turned = people()[people().columns[::-1]]
        assert torch.equal(data.read_inputs(write(turned, "new.csv"))["inputs"], data.read_inputs(write(people(), "old.csv"))["inputs"])

    def test_missing_columns_are_named(self, write: Write) -> None:
        data = ready(write(people()), drop=["id"])
        with pytest.raises(ValueError, match=r"the inputs: no column 'age'; did you mean 'aged'"):
            data.read_inputs(write(people().rename(columns={"age": "aged"}), "new.csv"))

    def test_text_in_a_column_of_numbers(self, write: Write) -> None:
        data = ready(write(people()), drop=["id"])
        with pytest.raises(ValueError, match="column 'income' must hold finite numbers, but row 0 has 'much'"):
            data.read_inputs(write(people().assign(income="much"), "new.csv"))

    def test_evaluation_on_another_file_keeps_training_numbers(self, write: Write) -> None:
        data = ready(write(people()), drop=["id"])
        other = Csv(write(people().iloc[:40].assign(income=1.0), "other.csv"), "churned", drop=["id"], batch_size=1)
        other.load_state_dict(data.state_dict())
        other.setup()
        assert torch.equal(other.table_encoder.transform(people()), data.table_encoder.transform(people()))
        strange = Csv(write(people().assign(churned="perhaps"), "strange.csv"), "churned", drop=["id"])
        strange.load_state_dict(data.state_dict())
        with pytest.raises(ValueError, match="label out of range: the target column 'churned' has 'perhaps'; the classes are no, yes"):
            strange.setup()

    def test_bundled_tables_and_parquet_read_new_files_too(self, write: Write, tmp_path: Path) -> None:
        data = Iris(batch_size=1)
        data.setup()
        data.read().inputs.to_parquet(tmp_path / "new.parquet")
        assert data.read_inputs(tmp_path / "new.parquet")["inputs"].shape == (150, 4)

    def test_before_setup(self, write: Write) -> None:
        with pytest.raises(ValueError, match="needs setup"):
            Csv(write(people()), "churned").read_inputs(write(people()))
