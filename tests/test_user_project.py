"""A user's own things: tables, arrays and pictures as data, from training to predictions; a project and packages with components of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from components.data import Macrodata
from losskit_cli.completion import complete
from losskit_cli.init_project import run_init
from losskit_cli.prediction import _table
from losskit_cli.runs import find_run
from tests.conftest import invoke, trained

SHORT = ["trainer.accelerator=cpu", "model.hidden=[16]", "tracking=none"]
TOWNS = ("Bergen", "Oslo", "Tromsø")
PLANS = ("basic", "plus", "pro")


def customers(count: int, seed: int, *, oldest: int = 90) -> pd.DataFrame:
    """Customers as a company's export has them: numbers, true/false, texts, gaps; who leaves is mostly a matter of age, plan and bill."""
    random = np.random.default_rng(seed)
    age, bill = random.integers(18, oldest, count).astype(float), random.gamma(3, 12, count).round(2)
    plan = random.choice(PLANS, count)
    score = (age - 45) / 12 + 1.5 * (plan == "basic") - bill / 30 + random.normal(0, 0.3, count)
    frame = pd.DataFrame({"customer": [f"C{seed}-{i:05d}" for i in range(count)], "age": age, "plan": plan, "bill": bill})
    frame["paperless"] = random.random(count) < 0.5
    frame["town"] = random.choice(TOWNS, count)
    frame["value"] = (2000 + 400 * score).round(1)
    frame["churned"] = np.where(score > 0, "yes", "no")
    frame.loc[random.random(count) < 0.08, "age"] = np.nan
    frame.loc[random.random(count) < 0.05, "town"] = None
    return frame


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the company's exports and a run on each kind of them."""
    directory = tmp_path_factory.mktemp("company")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        customers(900, 0).to_csv("churn.csv", index=False)
        table = ["data.path=churn.csv", "data.drop=[customer,value]", "data.target=churned", "model=mlp", "loss=cross_entropy"]
        trained("data=csv", *table, *SHORT, "trainer.max_epochs=12", "optimizer.lr=0.01", "name=churn")
        values = ["data=csv", "data.path=churn.csv", "data.drop=[customer,churned]", "data.target=value", "task=regression", *SHORT]
        trained(*values, "trainer.max_epochs=30", "name=value")
        trained(*values, "trainer.max_epochs=2", "loss=quantile", "name=bands")
        trained(*values, "trainer.max_epochs=2", "loss=gaussian_nll", "name=spread")
        (directory / "churn.csv").rename("training_data_is_elsewhere.csv")
        yield directory


@pytest.fixture
def here(company: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(company)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return company


def predicted(run: str, frame: pd.DataFrame, output: str = "out.csv") -> pd.DataFrame:
    frame.to_csv("new.csv", index=False)
    result = invoke("predict", run, "--input", "new.csv", "--output", output)
    assert (result.code, result.err) == (0, f"{len(frame)} prediction{'s' if len(frame) > 1 else ''} in {output}\n")
    return {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".json": pd.read_json}[Path(output).suffix](output)


class TestTables:
    """Trained on a CSV file that is not there any more: all that predicting needs is in the run."""

    def test_new_customers(self, here: Path) -> None:
        new = customers(400, 1)
        table = predicted("churn", new.drop(columns=["churned", "value", "customer"]))
        assert list(table.columns) == ["prediction", "probability_no", "probability_yes"]
        assert (table["prediction"] == new["churned"]).mean() > 0.85
        np.testing.assert_allclose(table["probability_no"] + table["probability_yes"], 1.0, atol=1e-5)

    def test_columns_in_any_order_further_ones_and_texts_never_seen(self, here: Path) -> None:
        new = customers(50, 2)
        straight = predicted("churn", new)
        turned = new[[*reversed(new.columns)]].assign(note="x")
        pd.testing.assert_frame_equal(predicted("churn", turned), straight)
        unseen = predicted("churn", new.assign(town="Narvik"))  # as a town that is missing
        pd.testing.assert_frame_equal(unseen, predicted("churn", new.assign(town=None)))

    def test_one_row_is_predicted_as_among_many(self, here: Path) -> None:
        new = customers(30, 3)
        together = predicted("churn", new)
        np.testing.assert_allclose(predicted("churn", new.iloc[[7]])["probability_yes"][0], together["probability_yes"][7], rtol=1e-5)

    def test_parquet_json_and_npz(self, here: Path) -> None:
        new = customers(20, 4)
        table = predicted("churn", new)
        for output in ("out.parquet", "out.json"):
            pd.testing.assert_frame_equal(predicted("churn", new, output), table, check_dtype=False, rtol=1e-5)
        found = invoke("predict", "churn", "-i", "new.csv", "-o", "out.npz", "--json").json()
        assert found["rows"] == 20 and found["output"] == "out.npz" and found["run_name"] == "churn"
        with np.load("out.npz") as arrays:
            np.testing.assert_allclose(arrays["probability"][:, 1], table["probability_yes"], rtol=1e-5)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("age,plan\n30,basic\n", "no column 'bill'"),
            ("age,plan,bill,paperless,town\n30,basic,12,True,Oslo\n30,basic\n", "line 3: 2 fields, but the header has 5"),
            ("age,plan,bill,paperless,town\n30,basic,free,True,Oslo\n", "column 'bill' must hold finite numbers, but row 0 has 'free'"),
            ("age,plan,bill,paperless,town\n", "has no rows"),
            ("", "is empty"),
        ],
    )
    def test_a_file_that_does_not_fit(self, here: Path, text: str, message: str) -> None:
        Path("wrong.csv").write_text(text, encoding="utf-8")
        result = invoke("predict", "churn", "--input", "wrong.csv", "--output", "never.csv")
        assert result.code == 2 and result.err.startswith("Error: --input wrong.csv: ") and message in result.err, result.err
        assert not Path("never.csv").exists()

    def test_next_month_is_judged_by_what_training_fitted(self, here: Path) -> None:
        """Only older customers, so scales fitted on them would be others; and whatever the format, the figures are the same."""
        month = customers(300, 5).query("age > 60").reset_index(drop=True)
        month.to_csv("month.csv", index=False)
        month.to_parquet("month.parquet")
        right = (predicted("churn", month)["prediction"] == month["churned"]).mean()
        for arguments in (["data.path=month.csv"], ["data=parquet", "data.path=month.parquet"]):
            result = invoke("eval", "churn", *arguments, "--split", "all", "--json")
            assert result.code == 0, result.err
            assert result.json()["samples"] == len(month) and result.json()["metrics"]["test/acc"] == pytest.approx(right, abs=1e-5)

    def test_next_month_may_lack_a_class_but_not_have_another(self, here: Path) -> None:
        month = customers(300, 6)
        month.query("churned == 'yes'").to_csv("month.csv", index=False)
        result = invoke("eval", "churn", "data.path=month.csv", "--split", "all", "--json")
        assert result.code == 0 and result.json()["samples"] == (month["churned"] == "yes").sum()
        month.replace({"churned": {"no": "maybe"}}).to_csv("month.csv", index=False)
        result = invoke("eval", "churn", "data.path=month.csv")
        assert result.code == 2 and "'maybe'" in result.err

    def test_values_in_their_own_units(self, here: Path) -> None:
        new = customers(300, 7)
        table = predicted("value", new)
        assert list(table.columns) == ["prediction"]
        error = np.sqrt(((table["prediction"] - new["value"]) ** 2).mean())
        assert error < 0.5 * new["value"].std() and abs(table["prediction"].mean() - new["value"].mean()) < 100

    def test_intervals_and_deviations_in_units_too(self, here: Path) -> None:
        new = customers(100, 8)
        bands = predicted("bands", new)
        assert list(bands.columns) == ["prediction", "quantile_0.1", "quantile_0.5", "quantile_0.9"]
        assert bands["quantile_0.5"].between(0, 4000).all() and (bands["quantile_0.9"] - bands["quantile_0.1"]).median() > 50
        spread = predicted("spread", new)
        assert list(spread.columns) == ["prediction", "standard_deviation"]
        assert spread["standard_deviation"].between(20, 2000).all()  # of a target whose own is several hundred

    def test_the_run_goes_on_where_its_data_is_now(self, here: Path) -> None:
        lost = invoke("eval", "value")
        assert lost.code == 2 and "there is no 'churn.csv' in" in lost.err
        found = invoke("eval", "value", "data.path=training_data_is_elsewhere.csv", "--json")
        assert found.code == 0, found.err
        result = invoke("predict", "value", "--output", "out.csv")
        assert result.code == 2 and "there is no 'churn.csv' in" in result.err

    def test_several_labels(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        frame = customers(300, 9)
        labelled = frame[["age", "bill"]].assign(old=(frame["age"] > 50).astype(int), dear=(frame["bill"] > 30).astype(int))
        labelled.to_csv("labels.csv", index=False)
        run = trained("data=csv", "data.path=labels.csv", "data.target=[old,dear]", "loss=bce", "metrics=multilabel", *SHORT, "trainer.max_epochs=5")
        table = predicted(run["run_name"], frame[["age", "bill"]])
        assert list(table.columns) == ["prediction_old", "prediction_dear", "probability_old", "probability_dear"]
        assert (table["prediction_dear"] == labelled["dear"]).mean() > 0.7


class TestArraysAndPictures:
    def test_npz(self, workdir: Path) -> None:
        random = np.random.default_rng(0)
        inputs = random.normal(size=(300, 5)) * 100 + 7
        target = (inputs[:, 0] > 7).astype(int) + (inputs[:, 1] > 7)
        np.savez("points.npz", inputs=inputs, target=target)
        run = trained("data=npz", "data.path=points.npz", *SHORT, "optimizer.lr=0.02", "trainer.max_epochs=20")
        np.savez("new.npz", inputs=inputs[:40])
        assert invoke("predict", run["run_name"], "--input", "new.npz", "--output", "p.csv").code == 0
        table = pd.read_csv("p.csv")
        assert list(table.columns) == ["prediction", "probability_0", "probability_1", "probability_2"]
        assert (table["prediction"] == target[:40]).mean() > 0.7
        np.savez("narrow.npz", inputs=inputs[:, :3])
        result = invoke("predict", run["run_name"], "--input", "narrow.npz", "--output", "p.csv")
        assert result.code == 2 and "must have the shape (N, 5)" in result.err

    def test_image_folder(self, workdir: Path) -> None:
        from PIL import Image

        random = np.random.default_rng(0)
        for name, shade in (("red", [150, 0, 0]), ("blue", [0, 0, 150])):
            for number in range(30):
                file = Path("pictures", name, f"{number:02d}.png")
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((random.integers(0, 100, (9, 11, 3)) + np.array(shade)).astype(np.uint8)).save(file)
        arguments = ["data=image_folder", "data.path=pictures", "data.image_size=8", "data.batch_size=8", "optimizer=adam", "optimizer.lr=0.01"]
        run = trained(*arguments, "tracking=none", "trainer.accelerator=cpu", "trainer.max_epochs=4")
        result = invoke("predict", run["run_name"], "--input", "pictures", "--output", "p.csv")
        assert (result.code, result.err) == (0, "60 predictions in p.csv\n")
        table = pd.read_csv("p.csv")
        assert list(table.columns) == ["file", "prediction", "probability_blue", "probability_red"]
        assert (table["prediction"] == table["file"].str.partition("/")[0]).mean() > 0.9
        one = invoke("predict", run["run_name"], "--input", "pictures/red/00.png", "--output", "p.json")
        assert one.err == "1 prediction in p.json\n" and json.loads(Path("p.json").read_text())[0]["prediction"] == "red"

    def test_a_forecast_of_the_test_split(self, workdir: Path) -> None:
        run = trained("data=sunspots", "data.horizon=4", "tracking=none", "trainer.accelerator=cpu", "trainer.max_epochs=1")
        assert invoke("predict", run["run_name"], "--output", "p.csv").code == 0
        table = pd.read_csv("p.csv")
        assert list(table.columns) == [f"{name}_{step}" for name in ("target", "prediction") for step in (1, 2, 3, 4)]
        assert table["target_2"][0] == pytest.approx(table["target_1"][1])  # the next window begins a year later
        assert table["target_1"].max() > 150  # sunspots, not standard deviations
        assert table["prediction_1"].between(-200, 400).all()

    def test_names_of_the_columns_of_several_series_and_what_is_too_wide(self) -> None:
        data = Macrodata()
        data.setup()
        table, wide = _table({"prediction": torch.zeros(2, 3, 2), "features": torch.zeros(2, 3), "picture": torch.zeros(2, 40, 40)}, data)
        steps = [f"prediction_{step}_{series}" for step in (1, 2, 3) for series in (0, 1)]
        assert list(table.columns) == [*steps, "features_0", "features_1", "features_2"] and wide == ["picture"]


class TestDistillation:
    def test_a_teacher_from_a_run(self, workdir: Path) -> None:
        teacher = trained(*SHORT, "model=mlp", "data.batch_size=256", "trainer.max_epochs=3", "name=teacher")
        arguments = ["task=distillation", "task.teacher_run=teacher", "data=digits", "model=mlp", "model.hidden=[4]", "data.batch_size=256"]
        student = trained(*arguments, "tracking=none", "trainer.accelerator=cpu", "trainer.max_epochs=1", "name=student")
        assert 0 <= student["metrics"]["test/agreement"] <= 1
        weights = torch.load(student["best_checkpoint"], weights_only=True)["state_dict"]
        taught = torch.load(teacher["best_checkpoint"], weights_only=True)["state_dict"]
        own = {name.removeprefix("teacher."): tensor for name, tensor in weights.items() if name.startswith("teacher.")}
        assert own and all(torch.equal(own[name.removeprefix("model.")], tensor) for name, tensor in taught.items() if name.startswith("model."))
        evaluated = invoke("eval", "student", "--json").json()["metrics"]
        assert evaluated == {k: pytest.approx(v) for k, v in student["metrics"].items() if k.startswith("test/")}
        result = invoke("train", *arguments, "tracking=none", "task.teacher_run=teachr")
        assert result.code == 2 and "there is no run 'teachr'; did you mean 'teacher'?" in result.err

    def test_a_teacher_that_is_not_of_this_data(self, workdir: Path) -> None:
        trained(*SHORT, "data=iris", "trainer.max_epochs=1", "name=gardener")
        result = invoke("train", "task=distillation", "task.teacher_run=gardener", "data=digits", *SHORT, "model=mlp")
        assert result.code == 2 and "takes inputs (N, 4)" in result.err and not list(Path().glob("outputs/*/*kd*")), result.err


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Puts a directory on Python's path, for this process and those that it starts; forgets what was imported from it."""
    before = set(sys.modules)
    added: list[Path] = []

    def add(directory: Path) -> None:
        added.append(directory)
        monkeypatch.syspath_prepend(str(directory))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, added)))

    yield add
    for name in set(sys.modules) - before:
        if any(str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(directory)) for directory in added):
            del sys.modules[name]


def install(name: str, site: Path, entry_points: str) -> None:
    """The metadata that ``pip install`` leaves beside a package."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


class TestInit:
    def test_all_that_its_readme_says_works(
        self, workdir: Path, store_template: Path, importable: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import tomllib

        root = run_init("my_project")
        monkeypatch.chdir(root)
        shutil.copy(store_template, root / "mlflow.db")
        readme = (root / "README.md").read_text(encoding="utf-8")
        lines = [line.partition("#")[0].split() for line in re.findall(r"```\n(.*?)```", readme, re.DOTALL)[0].splitlines()]
        commands = [words for words in lines if words and words[0] != "pip"]
        assert [words[0] for words in commands] == ["losskit"] * (len(commands) - 1) + ["pytest"] and len(commands) >= 6

        # without installing, as the README says below
        without = re.search(r"`PYTHONPATH=\. losskit (.*)`", readme)
        assert without is not None
        importable(root)
        small = ["model=mlp", "trainer.max_epochs=1", "trainer.accelerator=cpu", "data.batch_size=256"]
        result = invoke(*without[1].split(), *small, "--dry-run")
        assert result.code == 0, result.err
        # and installed
        declared = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["losskit.config"]
        install("my_project", root, "[losskit.config]\n" + "".join(f"{k} = {v}\n" for k, v in declared.items()))
        for _, *arguments in commands[:-1]:
            result = invoke(*arguments, *(small if arguments[0] == "train" else []))
            assert result.code == 0, (arguments, result.err)
        assert invoke("list", "loss", "--search", "my_loss").out.startswith("my_loss  Cross-entropy that also pulls the logits towards zero")
        assert {row["loss"] for row in invoke("compare", "--group-by", "loss", "--json").json()["rows"]} == {"my_loss"}
        (name,) = {row["name"] for row in invoke("compare", "--filter", "params.data.label_noise = 0", "--json").json()["rows"]}
        assert invoke("eval", name, "--json").code == 0
        assert "loss.strength: 0.01 → 0.5" in invoke("rerun", name, "loss.strength=0.5", "--dry-run").out
        tests = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=root, capture_output=True, text=True, check=False, timeout=120
        )
        assert tests.returncode == 0 and "passed" in tests.stdout, tests.stdout + tests.stderr


class TestPackages:
    @pytest.fixture
    def site(self, tmp_path_factory: pytest.TempPathFactory, importable: Callable[[Path], None]) -> Path:
        """Where somebody's package with a loss and a data set is installed."""
        site = tmp_path_factory.mktemp("site")
        for group in ("loss", "data"):
            (site / "fancy" / "conf" / group).mkdir(parents=True)
        (site / "fancy" / "__init__.py").write_text(
            "from components.data import Digits\nfrom components.losses import CrossEntropyLoss\n\n\n"
            'class Fancy(CrossEntropyLoss):\n    """Fancy."""\n\n\nclass Numbers(Digits):\n    """Numbers."""\n'
        )
        (site / "fancy" / "conf" / "loss" / "fancy.yaml").write_text("# A fancy loss (them)\n_target_: fancy.Fancy\nlabel_smoothing: 0.1\n")
        (site / "fancy" / "conf" / "loss" / "focal.yaml").write_text("# Not what losskit ships (them)\n_target_: fancy.Fancy\n")
        data = "# Numbers (them)\ndefaults:\n  - override /task@_global_.task: classification\n  - override /model@_global_.model: mlp\n"
        (site / "fancy" / "conf" / "data" / "numbers.yaml").write_text(data + "_target_: fancy.Numbers\nbatch_size: 256\nseed: ${seed}\n")
        install("fancy", site, "[console_scripts]\nfancy = fancy:main\n\n[losskit.config]\nfancy = fancy\n")
        importable(site)
        return site

    def test_it_joins_every_command(self, workdir: Path, site: Path) -> None:
        assert re.match(r"fancy +A fancy loss +them\n", invoke("list", "loss", "--search", "fancy").out)
        assert "A fancy loss" in invoke("show", "loss=fancy").out
        assert [c.value for c in complete(["train", "loss=fan"])] == ["loss=fancy"]
        assert "loss.label_smoothing=" in {c.value for c in complete(["train", "loss=fancy", "loss."])}
        assert "_target_: fancy.Fancy" in invoke("config", "loss=fancy").out
        run = trained("data=numbers", "loss=fancy", *SHORT, "trainer.max_epochs=1")
        assert run["run_name"].startswith("fancy-numbers-s0-")
        evaluated = invoke("eval", run["run_name"], "--json").json()
        assert evaluated["metrics"]["test/loss"] == pytest.approx(run["metrics"]["test/loss"])

    def test_what_losskit_ships_cannot_be_changed_by_it_and_doctor_says_so(self, workdir: Path, site: Path) -> None:
        assert invoke("config", "loss=focal", "--json").json()["loss"]["_target_"] == "components.losses.FocalLoss"
        findings = {f["name"]: f for f in json.loads(invoke("doctor", "--json").out)["findings"]}
        assert findings["plug-in fancy"]["status"] == "warn" and "hidden by losskit's own: loss=focal" in findings["plug-in fancy"]["value"]

    def test_uninstalled_it_is_gone_and_its_runs_say_what_they_lack(
        self, workdir: Path, site: Path, monkeypatch: pytest.MonkeyPatch, importable: Callable[[Path], None]
    ) -> None:
        trained("loss=fancy", "model=mlp", *SHORT, "data.batch_size=256", "trainer.max_epochs=1", "name=was")
        shutil.rmtree(site / "fancy")
        shutil.rmtree(site / "fancy-1.0.dist-info")
        for name in [m for m in sys.modules if m.partition(".")[0] == "fancy"]:
            monkeypatch.delitem(sys.modules, name)
        result = invoke("train", "loss=fancy")
        assert result.code == 2 and "there is no loss=fancy" in result.err
        result = invoke("eval", "was")
        assert result.code == 2 and "fancy" in result.err and "Traceback" not in result.err
        assert find_run("was").name == "was"
