"""Bad input gets one clear message, the right exit code, and loses nothing: every way in which a user can go wrong, through the command line itself.

Exit code 2: what was asked for cannot be; nothing was started and nothing is left behind. Exit code 1: a run was started and failed.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from components.callbacks import is_intact
from losskit_cli.app import run as command_line
from losskit_cli.first_batch import first_batch
from tests.conftest import Result, command

Losskit = Callable[..., Result]
IRIS = ("train", "tracking=none", "data=iris", "model=mlp", "trainer.max_epochs=2")
CSV = ("train", "tracking=none", "data=csv", "data.path=table.csv", "data.target=y", "trainer.max_epochs=2")
NAN_AT = '''
import torch
from components.losses.base import Loss
from torch import nn


class LossAt(Loss):
    """Cross-entropy whose value turns to `value` at one step."""

    def __init__(self, at: int, value: str = "nan", **options) -> None:
        super().__init__(**options)
        self.at, self.value, self.calls = at, float(value), 0

    def forward(self, logits, target, step):
        loss = torch.nn.functional.cross_entropy(logits, target, reduction=self.reduction)
        self.calls += 1
        return loss * self.value if torch.is_grad_enabled() and step == self.at - 1 else loss


class PenaltyAt(nn.Module):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def forward(self, logits, step):
        return logits.square().mean() * (float("inf") if step == self.at - 1 else 1.0)
'''


def assert_refused(result: Result, *says: str, directory: Path | None = None) -> None:
    """Wrong usage: exit code 2, one line on stderr, nothing on stdout, and nothing was made."""
    assert result.code == 2, (result.code, result.err, result.out)
    lines = result.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.err
    for words in says:
        assert words in lines[0], (words, lines[0])
    for jargon in ("Traceback", "pydantic", "hydra", "Hydra", "OmegaConf", "errors.pydantic", "full_key", "MisconfigurationException"):
        assert jargon not in lines[0], lines[0]
    assert result.out == ""
    assert not (directory or Path.cwd()).joinpath("outputs").exists()
    assert not (directory or Path.cwd()).joinpath("mlflow.db").exists()


def table(path: str = "table.csv", *, rows: int = 60, target: Callable[[int], Any] = lambda i: "ab"[i % 2], replaced: dict[int, str] | None = None) -> None:
    """A CSV of two input columns and the target ``y``; ``replaced``: row -> line to write instead."""
    lines = [f"{(i * 37 % 61) / 61:.4f},{(i * 17 % 59) / 59:.4f},{target(i)}" for i in range(rows)]
    for row, line in (replaced or {}).items():
        lines[row] = line
    Path(path).write_text("\n".join(["x1,x2,y", *lines]) + "\n")


@pytest.fixture
def own(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module of the user's and gives its name."""
    monkeypatch.syspath_prepend(str(workdir))
    made: list[str] = []

    def write(code: str) -> str:
        made.append(f"own_{abs(hash(workdir.name)) % 10**8}_{len(made)}")
        (workdir / f"{made[-1]}.py").write_text(code)
        return made[-1]

    yield write
    for name in made:
        sys.modules.pop(name, None)


# -- names --------------------------------------------------------------------------------------------------------------------
class TestNames:
    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["los=focal"], ["there is no 'los'", "did you mean 'loss'", "optimizer"]),
            (["loss=focl"], ["there is no loss=focl", "did you mean 'focal'", "losskit list loss"]),
            (["regularizer=[l1,l22]"], ["there is no regularizer=l22", "did you mean", "group_lasso"]),
            (["loss=focal", "loss.gama=3"], ["there is no 'loss.gama'", "did you mean 'gamma'", "loss has: gamma"]),
            (["loss=focal", "loss.gama=3", "modle.x=1"], ["there is no 'loss.gama'", "did you mean 'gamma'"]),
            (["optimizer.lrr=1"], ["there is no 'optimizer.lrr'", "did you mean 'lr'"]),
            (["trainer.max_epoch=1"], ["did you mean 'max_epochs'"]),
            (["tracking.urii=x"], ["there is no 'tracking.urii'", "did you mean 'uri'"]),
            (["logger=wandb"], ["it calls that 'tracking'"]),
            (["loss=null"], ["there is no loss=null", "losskit list loss"]),
            (["averaging=emma"], ["there is no averaging=emma", "did you mean 'ema'", "there is: checkfree, ema"]),
            (["loss="], ["there is no loss="]),
            (["regularizer=null"], ["to have none write regularizer=[]"]),
            (["experiment=null"], ["to have none write ~experiment"]),
            (["loss=[focal,poly1]"], ["loss takes one option", "loss=focal"]),
            (["loss=focal,poly1"], ["--multirun"]),
            (["loss"], ["'loss' is not an override", "key=value"]),
            (["=5"], ["'=5' is not an override"]),
            (["loss=[a"], ["cannot read the override 'loss=[a': a bracket is not closed"]),
            (["name='a"], ["a quote is not closed"]),
            (["~loss"], ["the config has no 'loss'"]),
            (["~seed"], ["data.seed does not resolve", "'seed' not found"]),
            (["~test"], ["the config has no 'test'"]),
            (["+loss.nothing=1"], ["loss has no parameter 'nothing'", "it has: "]),
            (["seed=${nowhere}"], ["seed does not resolve", "nowhere"]),
            (["+callbacks.mine=5"], ["callbacks.mine names no class", "callbacks.mine._target_=…"]),
            (["optimized_metric=val/accc"], ["optimized_metric=val/accc is not logged", "did you mean 'val/acc'", "val/loss"]),
            (
                ["callbacks=[early_stopping]", "callbacks.early_stopping.monitor=val/los"],
                ["early_stopping.monitor=val/los is not logged", "did you mean 'val/loss'"],
            ),
        ],
        ids=lambda value: "·".join(value) if isinstance(value, list) else None,
    )
    def test_unknown_groups_options_and_keys(self, losskit: Losskit, overrides: list[str], says: list[str]) -> None:
        assert_refused(losskit("train", *overrides), *says)

    def test_the_primary_config(self, losskit: Losskit) -> None:
        assert_refused(losskit("train", "-cn", "trian"), "there is no config 'trian'")

    def test_the_config_directory(self, losskit: Losskit) -> None:
        assert_refused(losskit("train", "--config-dir", "my_conf"), "--config-dir", "my_conf", "no such directory")

    def test_commands_and_flags(self, losskit: Losskit) -> None:
        unknown = losskit("trian")
        assert unknown.code == 2 and "No such command 'trian'. Did you mean 'train'?" in unknown.err and "Usage: losskit" in unknown.err
        flag = losskit("train", "--dry-rum")
        assert flag.code == 2 and "--dry-rum" in flag.err and "--dry-run" in flag.err

    def test_what_is_required_and_not_given(self, losskit: Losskit) -> None:
        assert_refused(losskit("train", "data=csv"), "data.path is required: set data.path=…", "also: data.target")
        assert_refused(losskit("train", "schedule.warmup=???"), "schedule.warmup is required")


# -- types and values -----------------------------------------------------------------------------------------------------------
class TestValues:
    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("seed=abc", ["seed='abc': it takes a whole number"]),
            ("seed=1.5", ["seed=1.5: it takes a whole number"]),
            ("seed=-1", ["seed=-1: it takes a whole number from 0 to 4294967295"]),
            ("train=maybe", ["train='maybe': it takes true or false"]),
            ("tags=5", ["tags=5: it takes a list"]),
            ("name=a/b", ["name='a/b'", "without '/'"]),
            ("optimized_direction=maximise", ["optimized_direction='maximise': it takes 'auto', 'minimize' or 'maximize'", "did you mean 'maximize'"]),
            ("data.batch_size=1.5", ["data.batch_size=1.5: it takes a whole number"]),
            ("data.batch_size=many", ["data.batch_size='many': it takes a whole number"]),
            ("data.batch_size=0", ["data=iris: batch_size must be >= 1, but got 0"]),
            ("data.batch_size=1000", ["data=iris: batch_size must be at most the 104 training samples, but got 1000"]),
            ("data.label_noise=2", ["label_noise must be in [0, 1], but got 2"]),
            ("data.val_fraction=0.9", ["val_fraction + test_fraction must be < 1"]),
            ("model.dropout=2", ["model=mlp: dropout must be in [0, 1), but got 2"]),
            ("model.hidden=[a,b]", ["model.hidden=['a', 'b']: it takes a list of whole numbers"]),
            ("optimizer.lr=fast", ["optimizer.lr='fast': it takes a number"]),
            ("optimizer.lr=-1", ["optimizer=adamw: optimizer.lr must be a finite number >= 0, but got -1"]),
            ("optimizer.lr=nan", ["optimizer.lr must be a finite number >= 0, but got nan"]),
            ("optimizer.weight_decay=-1", ["optimizer=adamw: Invalid weight_decay value: -1"]),
            ("optimizer.betas=5", ["optimizer=adamw", "--traceback shows where"]),
            ("schedule.warmup=soon", ["schedule.warmup='soon': it takes a number"]),
            ("trainer.max_epochs=many", ["trainer.max_epochs='many': it takes a whole number or null"]),
            ("trainer.max_epochs=0", ["trainer.max_epochs=0 trains nothing"]),
            ("trainer.max_epochs=-1", ["training has no end", "trainer.max_steps"]),
            ("trainer.limit_train_batches=0", ["trainer.limit_train_batches=0 trains nothing"]),
            ("trainer.val_check_interval=1000", ["trainer.val_check_interval=1000 is more than the 7 batches of an epoch"]),
            ("trainer.accumulate_grad_batches=0", ["trainer.accumulate_grad_batches=0: it takes a whole number >= 1"]),
            ("trainer.log_every_n_steps=0", ["trainer.log_every_n_steps=0: it takes a whole number >= 1"]),
            ("trainer.gradient_clip_val=-1", ["trainer.gradient_clip_val=-1: it takes a number >= 0"]),
            ("trainer.precision=7", ["trainer.precision=7: it takes 64, 32, 16", "bf16-mixed"]),
            ("trainer.devices=two", ["trainer.devices='two': it takes how many devices"]),
            ("trainer.accelerator=quantum", ["trainer.accelerator=quantum", "Available names are: "]),
            ("callbacks.checkpoints.every_n_steps=0", ["callbacks.checkpoints: every_n_steps must be >= 1, but got 0"]),
            ("ckpt_path=nowhere.ckpt", ["there is no checkpoint nowhere.ckpt"]),
            ("output_dir=table.csv", ["cannot make a run directory below table.csv", "output_dir=…"]),
        ],
    )
    def test_wrong_types_and_impossible_values(self, losskit: Losskit, override: str, says: list[str]) -> None:
        table()
        assert_refused(losskit(*IRIS, override), *says)

    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("tracking.on_error=bufer", "tracking.on_error must be one of stop, buffer, but got 'bufer'; did you mean 'buffer'?"),
            ("tracking.enabled=maybe", "tracking.enabled must be true or false, but got 'maybe'"),
            ("tracking.flush_seconds=0", "tracking.flush_seconds must be a number of seconds in (0, 60], but got 0"),
            ("tracking.uri=sqlite://", "tracking.uri 'sqlite://' names no file"),
        ],
    )
    def test_tracking(self, losskit: Losskit, override: str, says: str) -> None:
        assert_refused(losskit("train", override), says)

    def test_nothing_to_do(self, losskit: Losskit) -> None:
        assert_refused(losskit(*IRIS, "train=false", "test=false"), "there is nothing to do")

    def test_values_that_only_look_wrong_are_taken(self, losskit: Losskit) -> None:
        values = ("model.hidden=[8.0]", "optimizer.lr=1", "trainer.max_epochs=2.0", "train=True", "name='a b: c'", "data.batch_size=104")
        result = losskit(*IRIS, "--dry-run", *values)
        assert result.code == 0, result.err

    def test_early_stopping_without_validation(self, losskit: Losskit) -> None:
        result = losskit(*IRIS, "callbacks=[early_stopping]", "data.val_fraction=0")
        assert_refused(result, "callbacks.early_stopping watches val/loss, but data=iris has no validation samples")


# -- components that do not go together -------------------------------------------------------------------------------------------
class TestCombinations:
    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["loss=kd"], ["loss=kd needs teacher_logits", "task=classification offers", "tasks that offer it: auctions, distillation"]),
            (["loss=triplet"], ["loss=triplet needs embeddings", "tasks that offer it: embedding"]),
            (["loss=mse"], ["loss=mse needs prediction", "tasks that offer it: forecasting, image_regression"]),
            (["loss=quantile"], ["loss=quantile needs quantiles", "regression"]),
            (["data=diabetes", "loss=cross_entropy"], ["loss=cross_entropy needs logits", "task=regression offers", "classification"]),
            (["data=diabetes", "task=classification"], ["task=classification", "target_kind must be multiclass or multilabel", "task=regression"]),
            (["data=digits_attributes", "loss=cross_entropy"], ["loss=cross_entropy needs target"]),
            (["model=convnet"], ["model=convnet does not go with data=iris", "in_channels"]),
            (["model=transformer_lm"], ["model=transformer_lm does not go with data=iris", "vocab_size"]),
            (["task=language_modelling"], ["task=language_modelling does not go with data=iris", "vocab_size"]),
            (["data=co2", "model=convnet"], ["model=convnet, data=co2 and task=forecasting do not go together", "inputs (64, 104, 1)"]),
            (["data=digits", "model=linear", "model.input_shape=[10]"], ["model=linear, data=digits and task=classification do not go together"]),
            (["data=digits", "task=segmentation"], ["model=mlp, data=digits and task=segmentation do not go together", "(N, H, W)"]),
            (["transform=[random_flip]"], ["transform.random_flip does not go with data=iris"]),
            (["regularizer=[l1]", "regularizer.l1.weight=heavy"], ["regularizer.l1.weight must be a number or a schedule, but got 'heavy'"]),
            (["loss.weight=[1,2]"], ["loss=cross_entropy", "weight must have one value for each of the 3 classes, but got 2"]),
            (["loss.weight=[1,-2,3]"], ["loss=cross_entropy: weight must hold values >= 0"]),
            (["loss.weight=heavy"], ["loss.weight='heavy': it takes a list of numbers or null"]),
            (["data=diabetes", "loss.weight=balanced"], ["loss"]),
            (["loss.reduction=none"], ["loss=cross_entropy gives values of shape (16,)", "loss.reduction=mean"]),
            (["task=distillation", "task.teacher_run=nobody"], ["nobody"]),
        ],
        ids=lambda value: "·".join(value) if isinstance(value, list) else None,
    )  # fmt: skip
    def test_they_are_refused_before_a_run_is_recorded(self, losskit: Losskit, overrides: list[str], says: list[str]) -> None:
        assert_refused(losskit(*IRIS, *overrides), *says)

    def test_a_dry_run_says_the_same(self, losskit: Losskit) -> None:
        assert_refused(losskit(*IRIS, "--dry-run", "loss.weight=[1,2]"), "loss=cross_entropy fails on the first batch of data=iris: weight must have one value")

    def test_trying_the_first_batch_changes_nothing(self, losskit: Losskit, own: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
        module = own(
            "import torch\nfrom components.models.base import ModelOutput\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
            "    def __init__(self, num_outputs: int) -> None:\n        super().__init__()\n"
            "        self.calls, self.seen = 0, []\n        self.norm, self.drop, self.out = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, num_outputs)\n"
            "    def forward(self, x):\n        self.calls += self.training\n        self.seen.append(float(x.sum()))\n"
            "        return self.out(self.drop(self.norm(x))) + 0.01 * self.calls + 1e-6 * len(self.seen)\n"
        )
        weights: list[dict[str, torch.Tensor]] = []
        seen: list[Any] = []

        def only_once(*given: Any) -> Any:
            """Tries it in the first run alone, and then says what it has said."""
            if not seen:
                seen.append(first_batch(*given))
            return seen[0]

        monkeypatch.setattr("losskit_cli.run.first_batch", only_once)
        for tried in (True, False):
            options = (f"allow_targets=[{module}]", f"model={module}", "transform=[gaussian_noise]", "-cd", "conf", f"output_dir=tried_{tried}")
            Path("conf/model").mkdir(parents=True, exist_ok=True)
            Path(f"conf/model/{module}.yaml").write_text(f"# mine (me)\n_target_: {module}.Net\n")
            result = losskit(*(a for a in IRIS if a != "model=mlp"), *options, "--json")
            assert result.code == 0, result.err
            weights.append(torch.load(result.json()["last_checkpoint"], weights_only=True)["state_dict"])
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert "model.norm.num_batches_tracked" in weights[0]


# -- the user's own data ------------------------------------------------------------------------------------------------------------
class TestTables:
    def test_a_whole_one_is_taken(self, losskit: Losskit) -> None:
        table()
        assert losskit(*CSV, "--dry-run").code == 0

    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["data.path=tabel.csv"], ["data=csv: data.path: there is no 'tabel.csv'", "did you mean 'table.csv'"]),
            (["data.path=."], ["data.path must be a file, but '.' is a folder"]),
            (["data.target=yy"], ["data.target: no column 'yy'", "did you mean 'y'", "the columns are x1, x2, y"]),
            (["data.target=[y,z]"], ["data.target: no column 'z'"]),
            (["data.drop=[q]"], ["data.drop: no column 'q'"]),
            (["data.split=part"], ["data.split: no column 'part'"]),
            (["data.kind=reel"], ["kind must be one of auto, class, real, but got 'reel'; did you mean 'real'?"]),
            (["data.separator=;"], ["cannot read the override 'data.separator=;'", "goes into quotes", "'data.separator=\";\"'"]),
            (["data.separator=';'"], ["is data.separator=';' right?"]),
            (["loss=mse"], ["loss=mse needs prediction", "tasks that offer it: forecasting, image_regression"]),
            (["task=regression"], ["task=regression", "target_kind must be real", "task=classification"]),
            (["data.target=x1"], ["task=classification", "task=regression predicts real values"]),
            (["data.batch_size=100"], ["batch_size must be at most the 42 training samples, but got 100"]),
        ],
        ids=lambda value: "·".join(value) if isinstance(value, list) else None,
    )
    def test_options(self, losskit: Losskit, overrides: list[str], says: list[str]) -> None:
        table()
        assert_refused(losskit(*CSV, *overrides), *says)

    def test_nan_in_the_target(self, losskit: Losskit) -> None:
        table(replaced={7: "1,2,"})
        assert_refused(losskit(*CSV), "data=csv: the target column 'y' has 1 missing values (NaN), first in row 7")
        table(target=lambda i: i / 7, replaced={9: "1,2,nan"})
        assert_refused(losskit(*CSV, "task=regression"), "the target column 'y' has 1 missing values (NaN), first in row 9")

    def test_a_text_among_the_numbers_of_the_target(self, losskit: Losskit) -> None:
        table(target=lambda i: i / 7, replaced={9: "1,2,n/k"})
        assert_refused(losskit(*CSV, "task=regression", "data.kind=real"), "must hold finite numbers", "row 9 has 'n/k'")

    def test_one_class_only(self, losskit: Losskit) -> None:
        table(target=lambda i: "a")
        assert_refused(losskit(*CSV), "data=csv: the training split has one class only ('a')")

    def test_a_class_that_validation_has_and_training_has_not(self, losskit: Losskit) -> None:
        parts = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
        Path("table.csv").write_text("x,y,part\n" + "".join(f"{i},{'c' if i == 45 else 'ab'[i % 2]},{part}\n" for i, part in enumerate(parts)))
        assert_refused(losskit(*CSV, "data.split=part"), "data=csv: the val split has 'c', a class that the training split does not have")

    def test_a_split_of_another_name(self, losskit: Losskit) -> None:
        Path("table.csv").write_text("x,y,part\n" + "".join(f"{i},{'ab'[i % 2]},{'dev' if i > 50 else 'train'}\n" for i in range(60)))
        assert_refused(losskit(*CSV, "data.split=part"), "the split column 'part' must say train, val or test, but got ['dev']")

    def test_files_with_nothing_in_them(self, losskit: Losskit) -> None:
        Path("table.csv").write_text("")
        assert_refused(losskit(*CSV), "data.path: the file 'table.csv' is empty")
        Path("table.csv").write_text("x,y\n")
        assert_refused(losskit(*CSV), "the table 'table.csv' has no rows")

    @pytest.mark.parametrize(("line", "says"), [("1,2", "2 fields, but the header has 3"), ("1,2,a,9", "4 fields, but the header has 3")])
    def test_a_row_of_another_length_is_named_by_its_line(self, losskit: Losskit, line: str, says: str) -> None:
        table(replaced={10: line})
        assert_refused(losskit(*CSV), "table.csv, line 12", says)  # the header is line 1

    def test_files_that_are_something_else(self, losskit: Losskit) -> None:
        Path("table.csv").write_bytes(b"\xff\xfe\x00\x01" * 50)
        assert_refused(losskit(*CSV), "table.csv is not UTF-8 text")
        assert_refused(losskit(*CSV, "data=parquet"), "table.csv is no readable Parquet file")
        assert_refused(losskit(*IRIS, "data=npz", "data.path=table.csv"), "table.csv is no readable NPZ file")

    def test_two_columns_of_one_name(self, losskit: Losskit) -> None:
        Path("table.csv").write_text("x,x,y\n1,2,a\n")
        assert_refused(losskit(*CSV), "column names must differ, but the header has 'x' more than once")

    def test_labels_outside_the_range_and_broken_inputs(self, losskit: Losskit) -> None:
        import numpy as np

        inputs = np.linspace(0, 1, 240, dtype=np.float32).reshape(60, 4)
        np.savez("data.npz", inputs=inputs, target=np.array([0, 1, -3] * 20))
        assert_refused(losskit(*IRIS, "data=npz", "data.path=data.npz"), "label out of range: 20 labels are not in 0 …", "first -3 in sample 2")
        np.savez("data.npz", inputs=np.where(np.arange(60)[:, None] == 5, np.nan, inputs), target=np.array([0, 1, 2] * 20))
        assert_refused(losskit(*IRIS, "data=npz", "data.path=data.npz"), "inputs have NaN or infinite values in 1 samples, first in sample 5")
        np.savez("data.npz", inputs=inputs, target=np.array([0, 1, 2] * 10))
        assert_refused(losskit(*IRIS, "data=npz", "data.path=data.npz"), "inputs and target must be equally long, but got (60, 30)")
        np.savez("data.npz", x=inputs, target=np.array([0, 1, 2] * 20))
        assert_refused(losskit(*IRIS, "data=npz", "data.path=data.npz"), "the NPZ file has no array 'inputs'; it has x, target")


# -- the user's own code and options -------------------------------------------------------------------------------------------------
class TestOwnCode:
    @pytest.mark.parametrize(
        ("target", "says"),
        [
            ("os.system", ["is refused", "allow_targets=[os]"]),
            ("torch.load", ["is refused", "no class of torch"]),
            ("components.callbacks.checkpoints.os.system", ["is refused"]),
            ("components.losses.FocalLos", ["there is no 'FocalLos' in components.losses", "did you mean 'FocalLoss'"]),
            ("my_package.MyLoss", ["is refused", "allow_targets=[my_package]"]),
        ],
    )
    def test_targets_that_are_refused(self, losskit: Losskit, target: str, says: list[str]) -> None:
        assert_refused(losskit(*IRIS, f"loss._target_={target}"), f"loss._target_={target}", *says)

    @pytest.mark.parametrize(
        ("code", "says"),
        [
            ("raise RuntimeError('needs\\na licence')", ["cannot be imported: RuntimeError: needs a licence", "--traceback shows where"]),
            ("def f(:\n", ["cannot be imported: SyntaxError", "line 1", "--traceback shows where"]),
            ("import not_there_at_all\n", ["cannot be imported: No module named 'not_there_at_all'"]),
            ("class Other: ...\nclass Mine: ...\n", ["there is no 'MyLoss'"]),
        ],
    )
    def test_modules_that_cannot_be_imported(self, losskit: Losskit, own: Callable[[str], str], code: str, says: list[str]) -> None:
        module = own(code)
        assert_refused(losskit(*IRIS, f"loss._target_={module}.MyLoss", f"allow_targets=[{module}]"), f"loss._target_={module}.MyLoss", *says)

    def test_a_module_that_is_not_there(self, losskit: Losskit) -> None:
        assert_refused(losskit(*IRIS, "loss._target_=my_package.MyLoss", "allow_targets=[my_package]"), "there is no module 'my_package'", "PYTHONPATH")

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ("def __init__(self): raise KeyError('licence')", ["loss=mine: KeyError: 'licence'", "--traceback shows where"]),
            ("def forward(self, logitz, target): ...", ["loss=mine needs logitz", "task=classification offers", "no task offers it"]),
            ("def forward(self, logits, target): raise RuntimeError('one\\ntwo')", ["loss=mine fails on the first batch of data=iris: RuntimeError: one two"]),
            (
                "def forward(self, logits, target): return (logits.argmax(1) != target).float().mean()",
                ["loss=mine with model=mlp: the loss does not depend on anything that can be trained"],
            ),
            ("def forward(self, logits, target): return logits @ logits", ["loss=mine fails on the first batch of data=iris: RuntimeError: "]),
        ],
    )
    def test_losses_that_fail(self, losskit: Losskit, own: Callable[[str], str], body: str, says: list[str]) -> None:
        module = own(f"from components.losses.base import Loss\n\n\nclass MyLoss(Loss):\n    {body}\n")
        write_option("loss/mine", f"# mine (me)\n_target_: {module}.MyLoss\n")
        assert_refused(losskit(*IRIS, "-cd", "conf", "loss=mine", f"allow_targets=[{module}]"), *says)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("# mine (me)\n_target_: components.losses.FocalLoss\ngamma: [1, 2\nx: 1\n", ["conf/loss/mine.yaml:4: ", "',' or ']'"]),
            ("# mine (me)\n_target_: components.losses.FocalLoss\n\tgamma: 1\n", ["conf/loss/mine.yaml:3: ", "\\t"]),
            ("# mine (me)\ngamma: 1\n", ["loss names no class: it needs loss._target_=…"]),
            ("", ["loss names no class"]),
            ("# mine (me)\n_target_: components.losses.FocalLoss\ngamma: ${nowhere.x}\n", ["loss.gamma does not resolve", "nowhere.x"]),
            ("# mine (me)\n_target_: components.losses.FocalLoss\ngama: 1\n", ["loss has no parameter 'gama'", "did you mean 'gamma'"]),
            ("# mine (me)\ndefaults: [override /schedul: wsd]\n_target_: x.Y\n", ["loss/mine.yaml overrides 'schedul'", "did you mean 'schedule'"]),
            ("# mine (me)\ndefaults: [override /schedule: wsd]\n_target_: x.Y\n", ["loss/mine.yaml overrides 'schedule', which only options of"]),
        ],
    )
    def test_option_files_that_are_wrong(self, losskit: Losskit, text: str, says: list[str]) -> None:
        write_option("loss/mine", text)
        assert_refused(losskit("train", "tracking=none", "data=iris", "-cd", "conf", "loss=mine"), *says)

    def test_the_traceback_is_shown_when_asked_for(self, losskit: Losskit, own: Callable[[str], str]) -> None:
        module = own("raise RuntimeError('needs a licence')")
        result = losskit("--traceback", *IRIS, f"loss._target_={module}.MyLoss", f"allow_targets=[{module}]")
        assert result.code == 2
        assert "Traceback" in result.err and f"{module}.py" in result.err and result.err.strip().splitlines()[-1].startswith("Error: loss._target_=")

    def test_an_error_that_nobody_foresaw_is_one_message_too(self, losskit: Losskit, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("losskit_cli.commands.spec_of", lambda *given: 1 / 0)
        result = losskit("train")
        assert result.code == 1 and result.err == "Error: ZeroDivisionError: division by zero (--traceback shows where)\n"
        assert "Traceback" in losskit("train", "--traceback").err


def write_option(option: str, text: str) -> None:
    path = Path("conf", f"{option}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# -- losses that are not finite ---------------------------------------------------------------------------------------------------------
class TestNotFinite:
    def test_the_step_the_component_and_the_last_finite_values_are_named_and_the_run_is_failed(
        self, losskit: Losskit, own: Callable[[str], str], store_template: Path
    ) -> None:
        module = own(NAN_AT)
        shutil.copy(store_template, "mlflow.db")
        write_option("loss/mine", f"# mine (me)\n_target_: {module}.LossAt\nat: 9\n")
        options = ("callbacks.checkpoints.every_n_steps=3", "trainer.max_epochs=3", f"allow_targets=[{module}]", "-cd", "conf", "loss=mine", "tracking=mlflow")
        result = losskit(*IRIS, *options, "--json")
        assert result.code == 1 and result.out == ""
        (line,) = result.err.strip().splitlines()
        assert line.startswith("Error: the training loss is not finite at step 9: loss became nan; last finite values: loss=")
        (run_dir,) = Path("outputs").glob("*/*")
        last = run_dir / "checkpoints" / "last.ckpt"
        saved = torch.load(last, weights_only=True)
        assert is_intact(last) and saved["global_step"] in (6, 7)
        assert all(bool(torch.isfinite(weights).all()) for weights in saved["state_dict"].values())
        assert "NonFiniteLossError" in (run_dir / "error.txt").read_text()
        with sqlite3.connect("mlflow.db") as store:
            assert store.execute("select status from runs").fetchall() == [("FAILED",)]
            assert "not finite at step 9" in store.execute("select value from tags where key = 'losskit.error'").fetchone()[0]
            assert store.execute("select count(*) from metrics where is_nan or key like 'train/%' and step > 9").fetchone() == (0,)

    @pytest.mark.parametrize(
        ("option", "says"),
        [
            (["loss=mine"], "not finite at step 5: loss became inf; last finite values: loss="),
            (["+loss@auxiliary.second=mine"], "not finite at step 5: auxiliary.second, total became inf; last finite values: loss="),
            (["+regularizer.penalty={_target_: MODULE.PenaltyAt, at: 5, weight: 0.1}"], "not finite at step 5: regularizer.penalty, total became inf"),
            (["optimizer=sgd", "optimizer.lr=1e30"], "not finite at step 2: loss became nan; last finite values: loss="),
        ],
        ids=["loss", "auxiliary", "regularizer", "diverged"],
    )
    def test_every_component(self, losskit: Losskit, own: Callable[[str], str], option: list[str], says: str) -> None:
        module = own(NAN_AT)
        write_option("loss/mine", f"# mine (me)\n_target_: {module}.LossAt\nat: 5\nvalue: inf\n")
        result = losskit(*IRIS, "-cd", "conf", f"allow_targets=[{module}]", *(o.replace("MODULE", module) for o in option))
        assert result.code == 1
        assert says in result.err and "Traceback" not in result.err

    def test_a_callback_that_breaks_fails_the_run(self, losskit: Losskit, own: Callable[[str], str]) -> None:
        module = own(
            "import lightning\n\n\nclass Breaks(lightning.Callback):\n    def on_train_batch_end(self, trainer, *given):\n"
            "        if trainer.global_step == 9:\n            raise AttributeError('no such\\nthing')\n"
        )
        result = losskit(*IRIS, f"allow_targets=[{module}]", f"+callbacks.mine={{_target_: {module}.Breaks}}")
        assert result.code == 1
        (line,) = result.err.strip().splitlines()
        assert line.startswith("Error: AttributeError: no such thing (the traceback is in ")
        (run_dir,) = Path("outputs").glob("*/*")
        assert is_intact(run_dir / "checkpoints" / "last.ckpt") and "on_train_batch_end" in (run_dir / "error.txt").read_text()


# -- runs ----------------------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> Path:
    """A directory with two finished runs of one table, in a store: ``alpha``, and ``beta`` with another model."""
    directory = tmp_path_factory.mktemp("runs")
    shutil.copy(store_template, directory / "mlflow.db")
    before = Path.cwd()
    os.chdir(directory)
    try:
        table()
        for options in (["name=alpha"], ["name=beta", "model.hidden=[7]"], ["name=twin", "tracking=none"], ["name=twin", "tracking=none"]):
            assert command_line([*CSV, "tracking=mlflow", *options, "-q"]) == 0
            if "name=twin" in options:
                time.sleep(1.0)  # run directories of one second get a number behind their name
    finally:
        os.chdir(before)
    return directory


@pytest.fixture
def runs(two_runs: Path, losskit: Losskit, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(two_runs)
    return two_runs


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file() and p.name not in ("tracking.live", "tracking.log", "mlflow.db")}


class TestRuns:
    def refused(self, result: Result, *says: str) -> None:
        assert result.code == 2, (result.code, result.err)
        (line,) = result.err.strip().splitlines()
        assert line.startswith("Error: ") and result.out == ""
        for words in says:
            assert words in line, (words, line)

    @pytest.mark.parametrize("verb", [("resume",), ("rerun",), ("eval",), ("diff", "alpha"), ("predict", "--input", "table.csv", "--output", "p.csv")])
    def test_one_that_is_not_there(self, runs: Path, losskit: Losskit, verb: tuple[str, ...]) -> None:
        self.refused(losskit(*verb, "alhpa"), "there is no run 'alhpa'", "alpha")

    def test_one_of_several(self, runs: Path, losskit: Losskit) -> None:
        self.refused(losskit("eval", "twin"), "'twin' names 2 runs", "outputs/")

    def test_no_run_at_all(self, losskit: Losskit) -> None:
        assert_refused(losskit("resume", "--last"), "there is no run below", "losskit train")
        assert_refused(losskit("eval", "alpha"), "there is no store", "losskit train")
        assert_refused(losskit("resume"), "losskit resume RUN, or --last")

    def test_a_finished_one_is_not_resumed(self, runs: Path, losskit: Losskit) -> None:
        before = contents(runs / "outputs")
        self.refused(losskit("resume", "alpha"), "alpha is finished", "losskit resume alpha trainer.max_epochs=…")
        assert contents(runs / "outputs") == before

    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["trainer.max_epochs=1"], "alpha is finished"),
            (["model.hidden=[9]"], "model.hidden cannot change in the middle of a run"),
            (["trainer.max_epoch=9"], "did you mean 'max_epochs'"),
            (["trainer.max_epochs=many"], "trainer.max_epochs='many': it takes a whole number or null"),
            (["trainer.max_epochs=9", "trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val=-1: it takes a number >= 0"),
            (["trainer.max_epochs=9", "callbacks.checkpoints.every_n_steps=0"], "every_n_steps must be >= 1, but got 0"),
            (["trainer.max_epochs=9", "tracking.on_error=bufer"], "did you mean 'buffer'"),
        ],
        ids=lambda value: "·".join(value) if isinstance(value, list) else None,
    )
    def test_a_resume_that_cannot_be_leaves_the_run_as_it_was(self, runs: Path, losskit: Losskit, overrides: list[str], says: str) -> None:
        before = contents(runs / "outputs")
        result = losskit("resume", "alpha", *overrides)
        result.err = "\n".join(line for line in result.err.splitlines() if not line.startswith("note: "))
        self.refused(result, says)
        assert contents(runs / "outputs") == before
        with sqlite3.connect(runs / "mlflow.db") as store:
            assert store.execute("select distinct status from runs").fetchall() == [("FINISHED",)]

    def test_checkpoints_of_another_model(self, runs: Path, losskit: Losskit) -> None:
        (other,) = runs.glob("outputs/*/*-beta/checkpoints/best.ckpt")
        says = ("best.ckpt is of another model: model.body.0.weight: (7, 2) in the checkpoint, (128, 2) here", " and 2 more")
        self.refused(losskit("eval", "alpha", "--checkpoint", str(other)), *says)
        self.refused(losskit(*CSV, f"ckpt_path={other}"), *says)
        self.refused(losskit("eval", "alpha", "model.hidden=[9]"), "(128, 2) in the checkpoint, (9, 2) here")

    def test_checkpoints_that_are_none(self, runs: Path, losskit: Losskit) -> None:
        self.refused(losskit("eval", "alpha", "--checkpoint", "bets"), "there is no checkpoint bets (best, last or a file)")
        self.refused(losskit("eval", "alpha", "--checkpoint", "table.csv"), "table.csv is damaged or no checkpoint")
        torch.save({"weights": 1}, runs / "other.ckpt")
        self.refused(losskit("eval", "alpha", "--checkpoint", "other.ckpt"), "other.ckpt is no checkpoint of a run")

    def test_predicting(self, runs: Path, losskit: Losskit) -> None:
        (runs / "new.csv").write_text("x1,y\n1,a\n")
        predict = ("predict", "alpha", "--output", "predictions.csv", "--input")
        self.refused(losskit(*predict, "new.csv"), "--input new.csv", "no column 'x2'", "the columns are x1, y")
        (runs / "new.csv").write_text("x1,x2\n1,zz\n")
        self.refused(losskit(*predict, "new.csv"), "column 'x2' must hold finite numbers, but row 0 has 'zz'")
        (runs / "new.csv").write_text("x1,x2\n1,2\n1\n")
        self.refused(losskit(*predict, "new.csv"), "new.csv, line 3: 1 fields, but the header has 2")
        self.refused(losskit(*predict, "gone.csv"), "--input gone.csv: there is no such file")
        self.refused(losskit(*predict[:3], "p.xls", "--input", "table.csv"), "--output must end in .csv, .parquet")
        assert not (runs / "predictions.csv").exists()

    def test_rerunning_with_a_mistake_starts_nothing(self, runs: Path, losskit: Losskit) -> None:
        before = contents(runs / "outputs")
        self.refused(losskit("rerun", "alpha", "loss=focl"), "there is no loss=focl", "did you mean 'focal'")
        self.refused(losskit("rerun", "alpha", "seed=-1"), "seed=-1: it takes a whole number")
        assert contents(runs / "outputs") == before


# -- what goes where -------------------------------------------------------------------------------------------------------------------------
class TestOutput:
    def test_json_is_all_that_goes_to_stdout(self, losskit: Losskit, own: Callable[[str], str]) -> None:
        module = own(
            "import warnings, lightning\n\n\nclass Chatty(lightning.Callback):\n    def on_train_start(self, trainer, module):\n"
            "        print('hello from a callback')\n        warnings.warn('take care')\n"
        )
        result = losskit(*IRIS, f"allow_targets=[{module}]", f"+callbacks.mine={{_target_: {module}.Chatty}}", "--json")
        assert result.code == 0, result.err
        summary = json.loads(result.out)
        assert {"run_id", "run_name", "status", "steps", "duration_s", "metrics", "best_checkpoint", "last_checkpoint", "run_dir"} == set(summary)
        assert summary["status"] == "FINISHED" and summary["steps"] == 14 and Path(summary["last_checkpoint"]).is_file()
        assert "hello from a callback" in result.err

    def test_a_failing_command_prints_no_half_object(self, losskit: Losskit) -> None:
        assert_refused(losskit(*IRIS, "loss=kd", "--json"), "loss=kd needs teacher_logits")

    def test_no_store_is_touched_by_a_mistake_that_shows_late(self, losskit: Losskit, store_template: Path) -> None:
        shutil.copy(store_template, "mlflow.db")
        result = losskit("train", "data=iris", "model=mlp", "loss.weight=[1,2]")
        assert result.code == 2 and "weight must have one value" in result.err
        assert not Path("outputs").exists()
        with sqlite3.connect("mlflow.db") as store:
            assert store.execute("select count(*) from runs").fetchone() == (0,)

    def test_the_console_script_shows_one_line_and_the_code(self, workdir: Path) -> None:
        done = subprocess.run(command("train", "loss=focl"), cwd=workdir, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("Error: there is no loss=focl; did you mean 'focal'?") and done.stderr.count("\n") == 1
