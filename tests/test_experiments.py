"""Every option of every group in an experiment that suits it, every preset, and a short training of each of the eight tasks.

Options are found by their files, so a new one is tried without a line here, or, where it needs company, by an entry in one of
the tables below. Dry runs go all the way: composed, checked, built, one batch forward and backward.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from losskit_cli.build import Builder
from losskit_cli.compose import Composer
from tests.conftest import REPOSITORY, Result

Losskit = Callable[..., Result]

SOME_BYTES = "data.max_bytes=400000"
TEXT = ["data=python_source", SOME_BYTES, "data.sequence_length=32", "data.batch_size=4", "data.eval_batch_size=8", "model.width=16", "model.depth=1"]
RATERS = ["data=rater_shapes", "data.size=40", "model.width=4", "model.depth=1"]
MIXTURES = ["data=voice_mixtures", "data.size=30", "data.frames=16", "model.width=4", "model.depth=1"]
CELLS = ["data=cells", "data.tile=32", "model.width=4", "model.depth=2"]
FORECAST = ["data=sunspots", "model.width=16", "model.depth=1"]
DIGITS = ["data=digits", "model.channels=[4,8]"]
RANKING = ["data=implicit_feedback", "data.users=60", "data.size=900"]

TASKS = {
    "adversarial_calibration": [*DIGITS, "task=adversarial_calibration", "task.teacher_epochs=1", "task.rank=2", "task.attack_steps=2"],
    "class_incremental": [*DIGITS, "task=class_incremental"],
    "label_proportions": ["data=bags", "model.channels=[4,8]"],
    "noisy_pairs": ["data=paired_views", "data.size=600", "data.identities=60"],
    "classification": DIGITS,
    "regression": ["data=diabetes"],
    "forecasting": FORECAST,
    "segmentation": CELLS,
    "probabilistic_segmentation": RATERS,
    "separation": MIXTURES,
    "physics_informed": ["data=convection", "data.size=400", "model.hidden=[8,8]", "task.labels=16"],
    "density_estimation": ["data=eight_gaussians", "data.size=400", "model.hidden=[16]", "task.grid=20"],
    "sparse_recovery": ["data=sparse_signals", "data.size=300", "model.layers=3"],
    "image_regression": ["data=noisy_pictures", "model.width=4", "model.depth=1"],
    "rating": ["data=rated_quality", "data.size=400"],
    "embedding": [*DIGITS, "task=embedding"],
    "self_supervised": [*DIGITS, "task=self_supervised"],
    "distillation": [*DIGITS, "task=distillation", "task.teacher_epochs=1"],
    "calibration": [*DIGITS, "task=calibration", "task.predictor_epochs=1"],
    "rejection": [*DIGITS, "task=rejection", "task.predictor_epochs=1"],
    "targeting": ["data=churn", "data.size=400"],
    "language_modelling": TEXT,
    "ranking": RANKING,
    "ctr": ["data=feature_crosses", "data.size=600"],
    "auctions": ["data=auctions", "data.size=400", "task.teacher_epochs=1"],
}
"""A small experiment for each task."""

BOXES = {"regression": ["data=teacher_student", "data.outputs=4"], "forecasting": ["data=seasonal_series", "data.channels=2"]}
"""Where losses of boxes find an even number of targets: those of the tasks above have one."""

METRICS = {
    "adversarial_calibration": {"acc", "f1", "ece", "robust_acc", "adaptive_acc"},
    "class_incremental": {"acc", "f1", "ece", "average_incremental_acc"},
    "label_proportions": {"acc", "f1"},
    "noisy_pairs": {"recall_at_1", "recall_at_5", "recall_at_10"},
    "classification": {"acc", "f1", "ece"},
    "regression": {"mae", "rmse", "r2"},
    "forecasting": {"mae", "rmse", "mase"},
    "segmentation": {"iou", "dice", "acc"},
    "probabilistic_segmentation": {"ged", "diversity"},
    "separation": {"sdr", "gnsdr", "acc"},
    "physics_informed": {"rel_l2"},
    "density_estimation": {"nll"},
    "sparse_recovery": {"nmse", "rmse", "objective"},
    "image_regression": {"psnr", "mae"},
    "rating": {"plcc", "srcc"},
    "embedding": {"recall_at_1", "map_at_r"},
    "self_supervised": {"linear_probe_acc", "knn_acc"},
    "distillation": {"acc", "agreement"},
    "calibration": {"acc", "ece", "ks", "brier", "confidence_auroc"},
    "rejection": {"coverage", "precision", "area", "coverage_at_precision", "cost"},
    "targeting": {"profit", "regret", "maximum_profit", "expected_maximum_profit", "auroc"},
    "language_modelling": {"perplexity", "bits_per_byte"},
    "ranking": {"recall", "ndcg", "mrr", "auc"},
    "ctr": {"auroc", "logloss"},
    "auctions": {"welfare", "auroc", "logloss"},
}
"""What each task logs of validation and test, beside the loss."""

MODELS = {
    "dlinear": [["data=sunspots"], ["data=macrodata", "model.individual=true"]],
    "patch_transformer": [["data=sunspots"], ["data=macrodata", "loss=gaussian_nll"]],
    "xpatch": [["data=sunspots"], ["data=macrodata", "loss=gaussian_nll"]],
    "unet": [["data=cells"], ["data=coins"], ["data=vessels", "data.side=12"]],
    "coordinate_mlp": [["data=convection"], ["data=convection", "loss=lagrangian_pinn", "data.viscosity=0.1", "task.hard_initial=true"]],
    "gaussian_energy": [["data=gaussian_mean"]],
    "mixture_of_experts": [["data=iris"], ["data=digits", "model.router=sparse_transport"]],
    "gef_mixture": [["data=line_signal"], ["data=line_signal", "model.shape=modulated"], ["data=convection", "loss=mse"]],
    "unfolded_ista": [["data=sparse_signals"], ["data=sparse_signals", "model.incremental=true", "loss=unfolded_objective"]],
    "unfolded_iht": [["data=sparse_signals"]],
    "probabilistic_unet": [["data=rater_shapes"], ["data=cells"]],
    "transformer_lm": [TEXT, [*TEXT, "model.qk_norm=true", "loss=linear_cross_entropy"]],
    "linear": [["data=iris"], ["data=diabetes"], ["data=digits_attributes"]],
    "mlp": [["data=iris"], ["data=digits", "task=embedding"], ["data=digits", "task=self_supervised"], ["data=digits", "task=distillation"]],
    "convnet": [["data=faces"], ["data=digits", "task=self_supervised"], ["data=digits", "task=distillation"]],
    "resnet": [["data=digits"], ["data=digits", "task=embedding"], ["data=digits", "task=self_supervised"], ["data=digits", "task=distillation"]],
    "two_tower": [RANKING, ["data=label_sets"], ["data=query_documents", "model.shared=true"]],
    "scorer": [["data=auctions"]],
    "fcn": [["data=feature_crosses"]],
}
"""What each model is tried on; models of another package are tried by their own tests."""

REFUSED = {"class_incremental": {"smooth_adv_comp_sum", "trades"}, "language_modelling": {"legendre_tron", "smooth_adv_comp_sum", "trades"}}
"""Losses that a task refuses though it offers all that they ask for, by their own tests: they attack inputs, or need num_classes."""

REWEIGHTING = {"ccd": TASKS["noisy_pairs"]}
"""Reweighting that another task than classification feeds."""

FILES = {
    "csv": ["data.path=table.csv", "data.target=label"],
    "parquet": ["data.path=table.parquet", "data.target=value", "task=regression"],
    "npz": ["data.path=arrays.npz"],
    "image_folder": ["data.path=pictures", "data.image_size=16"],
    "text": ["data.path=text.txt", "data.sequence_length=16", "model.width=16", "model.depth=1"],
}
"""What data of the user's own is tried on; :func:`files` writes it."""

METRIC_SETS = {
    "adversarial": ["data=diabetes"],
    "errors": ["data=diabetes"],
    "returns": ["data=returns"],
    "spectrum": ["data=advected_field"],
    "segmentation_samples": RATERS,
    "topology": CELLS,
    "connectivity": CELLS,
    "binary": ["data=breast_cancer", "task.kind=binary", "loss=bce"],
    "multilabel": ["data=digits_attributes"],
    "campaign": ["data=churn", "data.size=400"],
    "confusion": ["data=digits_attributes", "loss=anyloss"],
    "few_shot": [*DIGITS, "task=embedding"],
    "extreme": ["data=label_sets"],
    "none": ["data=digits"],
    "robustness": DIGITS,
    "softmax_collapse": DIGITS,
    "verification": [*DIGITS, "task=embedding"],
    **TASKS,
}

OPTIONAL_PACKAGES = {("model", "timm"): "timm", ("model", "huggingface"): "transformers", ("data", "huggingface"): "datasets"}
"""Options of the extra ``hub``."""


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml") if (group, path.stem) not in OPTIONAL_PACKAGES)


def dry_run(losskit: Losskit, *overrides: str) -> dict[str, Any]:
    result = losskit("train", "--dry-run", "--json", *overrides)
    assert result.code == 0, f"losskit train --dry-run {' '.join(overrides)}: {result.err}"
    found: dict[str, Any] = result.json()
    assert found["finite"], f"{' '.join(overrides)}: loss {found['loss']}"
    return found


@pytest.fixture
def files(workdir: Path) -> None:
    """A table, arrays, pictures and a text of the user's own."""
    rng = np.random.default_rng(0)
    label = np.arange(60) % 3
    table = pd.DataFrame({"size": rng.normal(size=60) + label, "colour": rng.choice(["red", "blue"], 60), "label": np.array(["a", "b", "c"])[label]})
    table.to_csv("table.csv", index=False)
    table.assign(value=table["size"] * 2 + 1).drop(columns="label").to_parquet("table.parquet")
    np.savez("arrays.npz", inputs=rng.normal(size=(60, 4)), target=label)
    for i, name in enumerate(label):
        folder = Path("pictures", str(name))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    Path("text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 200, encoding="utf-8")


class TestEveryOption:
    """Builds, and the first batch goes forward and backward with finite numbers."""

    @pytest.mark.parametrize("model", options("model"))
    def test_model(self, losskit: Losskit, model: str) -> None:
        for overrides in MODELS[model]:
            dry_run(losskit, *[o for o in overrides if not o.startswith("model")], f"model={model}", *[o for o in overrides if o.startswith("model.")])

    @pytest.mark.parametrize("task", options("task"))
    def test_loss_in_every_task_that_can_feed_it(self, losskit: Losskit, task: str) -> None:
        offered = {option["name"] for option in json.loads(losskit("list", "loss", "--task", task, "--json").out)}
        assert offered
        for loss in sorted(offered):
            tasks = BOXES if loss.startswith("box_") else TASKS
            if task in tasks and loss not in REFUSED.get(task, ()):
                dry_run(losskit, *tasks[task], f"loss={loss}")

    @pytest.mark.parametrize("regularizer", options("regularizer"))
    def test_regularizer(self, losskit: Losskit, regularizer: str) -> None:
        parts = dry_run(losskit, *DIGITS, f"regularizer=[{regularizer}]")["parts"]
        assert list(parts) == ["loss", f"regularizer.{regularizer}"]

    @pytest.mark.parametrize("task", ["regression", "forecasting", "segmentation", "embedding", "self_supervised", "distillation", "language_modelling"])
    def test_regularizers_of_weights_in_every_task(self, losskit: Losskit, task: str) -> None:
        parts = dry_run(losskit, *TASKS[task], "regularizer=[l1,l2,group_lasso,spectral,activation_l2]", "regularizer.l1.weight=1e-3")["parts"]
        assert len(parts) == 6

    def test_all_regularizers_transforms_and_reweighting_together(self, losskit: Losskit) -> None:
        every = {group: f"{group}=[{','.join(options(group))}]" for group in ("regularizer", "transform")}
        parts = dry_run(losskit, *DIGITS, *every.values(), "reweighting=class_balanced", "+loss@auxiliary.dice=focal", "auxiliary.dice.weight=0.5")["parts"]
        assert len(parts) == 2 + len(options("regularizer"))

    @pytest.mark.parametrize("transform", options("transform"))
    def test_transform(self, losskit: Losskit, transform: str) -> None:
        dry_run(losskit, *DIGITS, f"transform=[{transform}]")

    @pytest.mark.parametrize("transform", ["random_flip", "gaussian_noise"])
    def test_transform_of_pictures_with_masks(self, losskit: Losskit, transform: str) -> None:
        dry_run(losskit, *CELLS, f"transform=[{transform}]")

    def test_class_weights_by_name(self, losskit: Losskit) -> None:
        """Of a set whose rarest class is a tenth of its commonest, by scikit-learn's rule and by the logarithm."""
        data = ["data=digits", "data.imbalance=10", "model=linear", "seed=1"]
        given = {rule: dry_run(losskit, *data, f"loss.weight={rule}")["loss"] for rule in ("balanced", "log", "null")}
        assert len(set(given.values())) == 3
        counts = np.bincount(Builder(Composer().compose(data).resolved()).data().splits["train"]["target"])
        for rule, weights in {"balanced": counts.sum() / (10 * counts), "log": np.log(counts.sum() / counts)}.items():
            assert dry_run(losskit, *data, f"loss.weight=[{','.join(map(str, weights))}]")["loss"] == pytest.approx(given[rule], rel=1e-6)

    @pytest.mark.parametrize("reweighting", options("reweighting"))
    def test_reweighting(self, losskit: Losskit, reweighting: str) -> None:
        dry_run(losskit, *REWEIGHTING.get(reweighting, [*DIGITS, "data.imbalance=10"]), f"reweighting={reweighting}")

    @pytest.mark.parametrize("averaging", options("averaging"))
    def test_averaging(self, losskit: Losskit, averaging: str) -> None:
        dry_run(losskit, *DIGITS, f"averaging={averaging}")

    @pytest.mark.parametrize("callback", options("callbacks"))
    def test_callback(self, losskit: Losskit, callback: str) -> None:
        dry_run(losskit, *DIGITS, f"callbacks=[{callback}]")

    @pytest.mark.parametrize("metrics", options("metrics"))
    def test_metrics(self, losskit: Losskit, metrics: str) -> None:
        dry_run(losskit, *METRIC_SETS[metrics], f"metrics={metrics}")

    @pytest.mark.parametrize("data", options("data"))
    def test_data(self, losskit: Losskit, files: None, data: str) -> None:
        dry_run(losskit, f"data={data}", *FILES.get(data, [SOME_BYTES] if data == "python_source" else []))

    @pytest.mark.parametrize("data", ["digits", "breast_cancer", "gaussian_mixture"])
    def test_data_corrupted_on_purpose(self, losskit: Losskit, data: str) -> None:
        dry_run(losskit, f"data={data}", "data.label_noise=0.4", "data.imbalance=3", "data.fraction=0.7", "data.missing=0.1")

    @pytest.mark.parametrize("tracking", options("tracking"))
    def test_tracking(self, losskit: Losskit, tracking: str) -> None:
        dry_run(losskit, *DIGITS, f"tracking={tracking}")
        assert not list(Path.cwd().iterdir()), "a dry run leaves nothing behind"

    @pytest.mark.parametrize("debug", options("debug"))
    def test_debug(self, losskit: Losskit, debug: str) -> None:
        dry_run(losskit, *DIGITS, f"debug={debug}")

    @pytest.mark.parametrize("experiment", options("experiment"))
    def test_experiment(self, losskit: Losskit, experiment: str) -> None:
        text = (REPOSITORY / "conf" / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines()
        assert text[0] == "# @package _global_"
        assert text[1].startswith("# ") and text[1].endswith(")"), "the second line is the description, with its source"
        dry_run(losskit, f"experiment={experiment}", *([SOME_BYTES] if experiment == "byte_lm" else []))

    def test_option_of_another_package_builds_or_says_what_to_install(self, losskit: Losskit) -> None:
        for (group, option), package in OPTIONAL_PACKAGES.items():
            if importlib.util.find_spec(package) is None:
                result = losskit("train", "--dry-run", f"{group}={option}", *(["data.path=x", "data.target=y"] if group == "data" else ["model.name=resnet18"]))
                assert result.code == 2
                assert "losskit[hub]" in result.err


class TestEveryOptimizerAndSchedule:
    """Two steps each: an optimizer first does something at its step, a schedule before it."""

    @pytest.mark.parametrize("optimizer", options("optimizer"))
    def test_optimizer(self, losskit: Losskit, optimizer: str) -> None:
        assert_trains(losskit, *(TASKS["distillation"] if optimizer == "dot" else ["data=iris"]), f"optimizer={optimizer}")

    @pytest.mark.parametrize("schedule", options("schedule"))
    def test_schedule(self, losskit: Losskit, schedule: str) -> None:
        source = ["schedule.run=source"] if schedule == "replay" else []
        if source:
            assert_trains(losskit, "data=iris", "name=source")
        assert_trains(losskit, "data=iris", f"schedule={schedule}", *source)


class TestEveryTask:
    @pytest.mark.parametrize("task", options("task"))
    def test_trains_and_logs_its_metrics(self, losskit: Losskit, task: str) -> None:
        metrics = assert_trains(losskit, *TASKS[task])
        for stage in ("val", "test"):
            assert {name.removeprefix(f"{stage}/") for name in metrics if name.startswith(f"{stage}/")} == METRICS[task] | {"loss"}

    @pytest.mark.parametrize("kind", ["binary", "multilabel"])
    def test_other_kinds_of_classification(self, losskit: Losskit, kind: str) -> None:
        metrics = assert_trains(losskit, f"experiment={kind}")
        assert {"binary": "test/auroc", "multilabel": "test/map"}[kind] in metrics

    def test_best_checkpoint_is_the_best_where_more_is_better(self, losskit: Losskit) -> None:
        result = losskit("train", "--json", "tracking=none", "data=iris", "trainer.max_epochs=8", "optimized_metric=val/acc")
        assert result.code == 0, result.err
        import torch

        state = torch.load(result.json()["best_checkpoint"], weights_only=True)
        best = next(value for value in state["callbacks"].values() if "best_score" in value)
        assert best["best_score"] >= result.json()["metrics"]["val/acc"]


def assert_trains(losskit: Losskit, *overrides: str) -> dict[str, float]:
    """Three steps, one batch of validation and test, every metric finite."""
    short = ["trainer.max_epochs=1", "trainer.max_steps=3", "trainer.val_check_interval=1.0", "trainer.check_val_every_n_epoch=1"]
    limits = ["trainer.limit_train_batches=3", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
    result = losskit("train", "--json", "tracking=none", *overrides, *short, *limits)
    assert result.code == 0, f"losskit train {' '.join(overrides)}: {result.err}"
    summary = result.json()
    assert (summary["status"], summary["steps"]) == ("FINISHED", 3)
    metrics: dict[str, float] = summary["metrics"]
    assert {"train/loss", "val/loss", "test/loss"} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    return metrics
