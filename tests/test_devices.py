"""Any accelerator setting: several processes on the CPU, half precision, compiled models, and settings that cannot be.

Rank 0 of a run on several devices is the test process itself; rank 1 is a process that it starts.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from losskit_cli.errors import UsageError
from losskit_cli.ranks import Ranks, device_count, one_device
from losskit_cli.rundir import SPEC
from tests.conftest import REPOSITORY, Result, further_ranks

Losskit = Callable[..., Result]

PROBE = '''
from pathlib import Path
import lightning
import torch
from torch import nn


class Probe(lightning.Callback):
    """Writes what each rank has seen: the loss of each step, and the weights after the last one."""

    def __init__(self, to: str) -> None:
        self.to, self.losses = Path(to), []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step:
            self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_train_end(self, trainer, module):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.to.mkdir(exist_ok=True)
        torch.save({"losses": self.losses, "weights": module.state_dict()}, self.to / f"rank{trainer.global_rank}.pt")


class Mirrored(nn.Module):
    """A view that is the same whatever the rank: not random, so that two processes can be compared with one."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, batch):
        self.calls += 1
        return {**batch, "inputs": batch["inputs"].flip(3) if self.calls % 2 else 0.5 * batch["inputs"]}
'''
TASKS = {
    "classification": ["data=digits", "data.eval_batch_size=50"],
    "regression": ["data=diabetes", "data.eval_batch_size=9"],
    "forecasting": ["data=co2", "data.eval_batch_size=50"],
    "segmentation": ["data=cells", "data.batch_size=4", "data.eval_batch_size=3"],
    "embedding": ["data=digits", "task=embedding", "data.holdout_classes=[7,8,9]", "data.eval_batch_size=50"],
    "self_supervised": ["data=digits", "task=self_supervised", "data.eval_batch_size=50"],
    "distillation": ["data=digits", "model=mlp", "task=distillation", "task.teacher_epochs=1", "data.eval_batch_size=50"],
    "language_modelling": [
        "data=python_source", "data.sequence_length=32", "data.batch_size=8", "data.eval_batch_size=8", "model.width=32", "model.depth=1", "model.num_heads=2",
    ],
}  # fmt: skip
LOSSES = {
    "cross_entropy": ["data=digits", "loss=cross_entropy"],
    "mse": ["data=diabetes", "loss=mse"],
    "triplet": ["data=digits", "task=embedding", "loss=triplet"],
    "supervised_contrastive": ["data=digits", "task=embedding", "loss=supervised_contrastive"],
    "info_nce": ["data=digits", "task=self_supervised", "loss=info_nce", "task.projection_norm=none", "task.augment={_target_: ranks_probe.Mirrored}"],
}
STEPS = 3
SHORT = [
    "trainer.accelerator=cpu", f"trainer.limit_train_batches={STEPS}", "trainer.max_epochs=1", "trainer.max_steps=-1", "trainer.val_check_interval=1.0",
    "trainer.check_val_every_n_epoch=1", "trainer.limit_val_batches=2", "trainer.log_every_n_steps=1", "callbacks=[checkpoints]", "allow_targets=[ranks_probe]",
]  # fmt: skip
RANDOM = ("loss",)  # of the self-supervised task: its views are drawn for each batch


@pytest.fixture
def project(workdir: Path, store_template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (workdir / "ranks_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(str(workdir))
    monkeypatch.setitem(sys.modules, "ranks_probe", None)
    monkeypatch.delitem(sys.modules, "ranks_probe")
    shutil.copy(store_template, workdir / "mlflow.db")
    return workdir


def probe(to: str) -> str:
    return f"+callbacks.probe={{_target_: ranks_probe.Probe, to: {to}}}"


def seen(directory: Path, rank: int = 0) -> dict[str, Any]:
    return torch.load(directory / f"rank{rank}.pt", weights_only=True)


# -- two processes ------------------------------------------------------------------------------------------------------
def test_two_ranks_search_one_schedule(project: Path, losskit: Losskit) -> None:
    search = ["schedule=autolrs", "schedule.method=paper", "schedule.stage=10", "schedule.longest=10", "schedule.candidates=2", "schedule.probe=0.4"]
    options = ["data=digits", "data.fraction=0.3", "model=mlp", "trainer.accelerator=cpu"]
    options += ["trainer.max_steps=20", "trainer.max_epochs=-1", "allow_targets=[ranks_probe]", "trainer.log_every_n_steps=1"]
    trained = losskit("train", *options, *search, "trainer.devices=2", probe("seen"), "--json")
    assert trained.code == 0, trained.err
    first, second = seen(project / "seen", 0), seen(project / "seen", 1)
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())
    found = json.loads((Path(trained.json()["run_dir"]) / "schedule" / "found.json").read_text())
    assert [len(stage["probes"]) for stage in found["stages"]] == [1, 2, 2] and found["trained_steps"] == 20


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_on_two_ranks_as_one_run(project: Path, losskit: Losskit, task: str) -> None:
    limit = ["trainer.limit_test_batches=4"] if task == "language_modelling" else []
    trained = losskit("train", *TASKS[task], *SHORT, *limit, "trainer.devices=2", probe("seen"), "--json")
    assert trained.code == 0, trained.err
    assert not {"LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"} & set(os.environ)
    assert not torch.distributed.is_initialized()
    assert further_ranks(project) == []

    summary = trained.json()
    with sqlite3.connect(project / "mlflow.db") as store:
        assert store.execute("select run_uuid, status from runs").fetchall() == [(summary["run_id"], "FINISHED")]
    assert [path.parent for path in project.glob(f"outputs/*/*/{SPEC}")] == [Path(summary["run_dir"])]
    assert summary["steps"] == STEPS

    first, second = seen(project / "seen", 0), seen(project / "seen", 1)
    assert first["losses"] == second["losses"]
    assert len(first["losses"]) == STEPS
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), f"{name} differs between the ranks"

    # metrics are those of the whole split: one process that evaluates the same weights finds the same
    size = json.loads((Path(summary["run_dir"]) / SPEC).read_text())["config"]["data"]["eval_batch_size"]
    evaluated = losskit("eval", summary["run_dir"], f"data.eval_batch_size={2 * size}", "--json")
    assert evaluated.code == 0, evaluated.err
    for name, value in evaluated.json()["metrics"].items():
        if task != "self_supervised" or name.partition("/")[2] not in RANDOM:
            assert summary["metrics"][name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("loss", LOSSES)
def test_two_ranks_take_the_steps_of_one_process_with_twice_the_batch(project: Path, losskit: Losskit, loss: str) -> None:
    options = [*LOSSES[loss], "model=mlp", "model.norm=none", *SHORT, "trainer.limit_val_batches=0", "test=false", "tracking=none", "-q"]
    together = losskit("train", *options, "trainer.devices=2", "data.batch_size=16", probe("two"))
    assert together.code == 0, together.err
    alone = losskit("train", *options, "trainer.devices=1", "data.batch_size=32", probe("one"))
    assert alone.code == 0, alone.err
    two, one = seen(project / "two"), seen(project / "one")
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        (["data=digits"], ["acc", "f1", "ece"]),
        (["data=diabetes"], ["mae", "rmse"]),
        (["data=digits", "task=embedding"], []),  # of one sample, nothing can be retrieved
        (["data=digits", "task=self_supervised"], ["linear_probe_acc", "knn_acc"]),
    ],
    ids=["classification", "regression", "embedding", "self_supervised"],
)
def test_a_rank_that_has_nothing_to_evaluate_does_not_keep_the_other_waiting(project: Path, losskit: Losskit, task: list[str], metrics: list[str]) -> None:
    one_sample = ["data.val_fraction=0.0005", "data.test_fraction=0.0005"] if "data=digits" in task else ["data.val_fraction=0.002", "data.test_fraction=0.002"]
    trained = losskit("train", *task, *one_sample, *SHORT, "trainer.devices=2", "tracking=none", "--json")
    assert trained.code == 0, trained.err
    found = trained.json()["metrics"]
    evaluated = losskit("eval", trained.json()["run_dir"], "--json")
    expected = evaluated.json()["metrics"]
    assert {f"test/{name}" for name in metrics} <= set(expected)
    for name in expected:
        if "self_supervised" not in task[-1] or not name.endswith("loss"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4, nan_ok=True), name


def test_ranks_start_from_the_written_config_and_not_from_the_command_line(project: Path, monkeypatch: pytest.MonkeyPatch, losskit: Losskit) -> None:
    monkeypatch.setattr(sys, "argv", ["losskit", "train", "data=nowhere", "trainer.devices=7"])
    trained = losskit("train", "data=iris", "model=linear", *SHORT, "trainer.devices=2", "trainer.strategy=ddp", probe("seen"), "tracking=none", "--json")
    assert trained.code == 0, trained.err
    assert sorted(path.name for path in (project / "seen").iterdir()) == ["rank0.pt", "rank1.pt"]
    assert (Path(trained.json()["run_dir"]) / "rank1.log").read_text() == ""


def test_several_runs_on_two_ranks_follow_each_other_in_one_process(project: Path, losskit: Losskit) -> None:
    swept = losskit("train", "-m", "data=iris", "model=linear", *SHORT, "trainer.devices=2", "tracking=none", "seed=1,2", "--json")
    assert swept.code == 0, swept.err
    assert [run["status"] for run in swept.json()] == ["FINISHED", "FINISHED"]
    assert further_ranks(project) == []


# -- precision and compilation --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_in_half_precision(project: Path, losskit: Losskit, task: str, precision: str) -> None:
    short = [*SHORT, "trainer.limit_train_batches=2", "trainer.limit_test_batches=2"]
    trained = losskit("train", *TASKS[task], *short, f"trainer.precision={precision}", "tracking=none", "--json")
    assert trained.code == 0, trained.err
    metrics = trained.json()["metrics"]
    assert {"train/loss", "val/loss", "test/loss"} <= set(metrics)
    assert all(math.isfinite(value) for name, value in metrics.items()), metrics


def test_metrics_count_in_full_precision_whatever_the_model_is_in(project: Path, losskit: Losskit) -> None:
    """bfloat16 counts to 256 and no further."""
    wide = losskit("train", "data=digits", "model=mlp", *SHORT, "trainer.limit_val_batches=1.0", "trainer.precision=bf16-true", "tracking=none", "--json")
    assert wide.code == 0, wide.err
    found = wide.json()
    checkpoint = torch.load(found["best_checkpoint"], weights_only=True)
    assert {weight.dtype for name, weight in checkpoint["state_dict"].items() if name.startswith("model.")} == {torch.bfloat16}
    evaluated = losskit("eval", found["run_dir"], "trainer.precision=32-true", "--json").json()["metrics"]
    assert found["metrics"]["test/acc"] == pytest.approx(evaluated["test/acc"], abs=0.02)
    assert found["metrics"]["test/ece"] == pytest.approx(evaluated["test/ece"], abs=0.02)


def test_a_compiled_model_trains_as_an_uncompiled_one(project: Path, losskit: Losskit) -> None:
    """With the loss that takes hidden states: the part of the model that it runs is compiled, too."""
    options = [*TASKS["language_modelling"], "loss=linear_cross_entropy", *SHORT, "trainer.limit_val_batches=0", "test=false", "tracking=none", "-q"]
    plain = losskit("train", *options, probe("plain"))
    assert plain.code == 0, plain.err
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = losskit("train", *options, "trainer.compile=true", probe("compiled"))
    assert compiled.code == 0, compiled.err
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert seen(project / "compiled")["losses"] == pytest.approx(seen(project / "plain")["losses"], rel=1e-4)
    assert list(seen(project / "compiled")["weights"]) == list(seen(project / "plain")["weights"])


# -- no device is assumed ---------------------------------------------------------------------------------------------------
COMPONENTS = {
    "classification": [
        "loss=focal", "loss=poly1", "loss=bce", "loss.weight=balanced", "reweighting=class_balanced",
        "regularizer=[l1,l2,group_lasso,spectral]", "regularizer=[confidence_penalty,activation_l2,jacobian]",
        "transform=[cutmix]", "transform=[mixup,gaussian_noise]", "transform=[random_flip,random_shift,image_augment]",
    ],
    "regression": ["loss=l1", "loss=huber", "loss=log_cosh", "loss=quantile", "loss=gaussian_nll"],
    "segmentation": ["loss=dice"],
    "embedding": ["loss=supervised_contrastive"],
    "language_modelling": ["loss=linear_cross_entropy"],
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_a_training_step_stays_on_the_device_where_the_model_is(workdir: Path, task: str) -> None:
    """On torch's meta device: whatever is made on the CPU in between, or read back to it, is an error there."""
    from losskit_cli.build import Builder
    from losskit_cli.commands import spec_of
    from losskit_cli.compose import Composer

    for option in ["seed=0", *COMPONENTS.get(task, [])]:
        spec = spec_of(Composer().compose([*TASKS[task], option, "trainer.accelerator=cpu", "tracking=none"]))
        experiment = Builder(spec.config, spec.choices).experiment()
        module = experiment.task.to("meta").train()
        batch = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in next(iter(experiment.data.train_dataloader())).items()}
        for transform in module.transforms:
            batch = transform(batch)
        quantities = module.quantities(batch)
        total, _ = module.objective(quantities, 0)
        total.backward()
        assert total.device.type == "meta", option
        for metric in module.metrics_of("val").values():
            if "torchmetrics" not in type(metric.module).__module__:
                metric.module.update(**{p: quantities[q].detach() for p, q in metric.arguments.items()})


def test_nothing_names_a_device() -> None:
    named = re.compile(r"\.cuda\(|\.cpu\(\)\.numpy|device\s*=\s*[\"'](cuda|cpu|mps)|\.to\(\s*[\"'](cuda|mps)")
    sources = [path for package in ("components", "losskit_cli", "sweeps") for path in (REPOSITORY / package).rglob("*.py")]
    found = [f"{path.relative_to(REPOSITORY)}:{n}" for path in sources for n, line in enumerate(path.read_text().splitlines(), 1) if named.search(line)]
    assert found == []


def test_a_run_of_several_devices_is_tried_and_evaluated_by_this_process_alone(workdir: Path, losskit: Losskit) -> None:
    tried = losskit("train", "--dry-run", "data=iris", "model=linear", "trainer.accelerator=cpu", "trainer.devices=2", "--json")
    assert tried.code == 0, tried.err
    alone = losskit("train", "--dry-run", "data=iris", "model=linear", "trainer.accelerator=cpu", "trainer.devices=1", "--json")
    assert tried.json()["total_steps"] < alone.json()["total_steps"], "the steps are those of two devices"
    assert not (workdir / "outputs").exists()


def test_a_run_of_an_accelerator_that_is_not_here_can_be_evaluated_here(workdir: Path, losskit: Losskit) -> None:
    trained = losskit("train", "data=wine", "model=linear", *SHORT, "tracking=none", "--json").json()
    spec = Path(trained["run_dir"]) / SPEC
    written = json.loads(spec.read_text())
    written["config"]["trainer"] |= {"accelerator": "gpu", "devices": [2, 3], "strategy": "ddp"}
    spec.write_text(json.dumps(written))
    evaluated = losskit("eval", trained["run_dir"], "--json")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.json()["metrics"]["test/acc"] == pytest.approx(trained["metrics"]["test/acc"])


# -- settings -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "setting",
    ["trainer.devices=auto", "trainer.devices=-1", "trainer.devices='1'", "trainer.strategy=ddp", "trainer.num_nodes=1"],
)
def test_settings_that_come_to_one_device_here(workdir: Path, losskit: Losskit, setting: str) -> None:
    trained = losskit("train", "data=iris", "model=linear", *SHORT, setting, "tracking=none", "-q")
    assert trained.code == 0, trained.err
    assert not torch.distributed.is_initialized()
    assert "LOCAL_RANK" not in os.environ


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("trainer.devices=0", "trainer.devices=0: it takes"),
        ("trainer.devices=many", "trainer.devices='many': it takes"),
        ("trainer.devices=[0,1]", "trainer.devices=[0, 1]"),
        ("trainer.accelerator=gpu", "trainer.accelerator=gpu"),
        ("trainer.accelerator=nope", "trainer.accelerator=nope"),
        ("trainer.strategy=nope", "trainer.strategy=nope"),
        ("trainer.strategy=ddp_spawn", "use trainer.strategy=ddp"),
        ("trainer.strategy=fsdp", "requires a GPU"),
        ("trainer.num_nodes=2", "trainer.num_nodes=2: losskit trains on one machine"),
        ("trainer.num_nodes=0", "num_nodes"),
        ("trainer.precision=8", "trainer.precision=8"),
        ("trainer.compile=maybe", "trainer.compile=maybe: it takes true or false"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_that_names_it(workdir: Path, losskit: Losskit, setting: str, said: str) -> None:
    refused = losskit("train", "data=iris", "model=linear", setting, "tracking=none")
    assert refused.code == 2, refused.err
    assert said in refused.err
    assert len(refused.err.strip().splitlines()) == 1, refused.err
    assert not list(workdir.glob("outputs/*/*"))


def test_a_wrong_setting_beside_two_devices_leaves_no_process(workdir: Path, losskit: Losskit) -> None:
    refused = losskit("train", "data=iris", "model=linear", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=nope", "tracking=none")
    assert refused.code == 2, refused.err
    assert further_ranks(workdir) == []
    assert not list(workdir.glob("outputs/*/*"))
    assert "LOCAL_RANK" not in os.environ


def test_several_processes_of_a_launcher_would_be_several_runs(workdir: Path, losskit: Losskit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    refused = losskit("train", "data=iris", "model=linear", "tracking=none")
    assert refused.code == 2
    assert "set trainer.devices=" in refused.err


def test_a_batch_that_all_devices_cannot_fill_is_refused(workdir: Path, losskit: Losskit) -> None:
    options = ["data=iris", "model=linear", "data.batch_size=60", "data.drop_last=true", "trainer.accelerator=cpu", "trainer.devices=2"]
    refused = losskit("train", "--dry-run", *options)
    assert refused.code == 2
    assert "a batch of all devices is 120" in refused.err


@pytest.mark.parametrize(
    ("trainer", "count"),
    [
        ({}, 1),
        ({"devices": 3}, 3),
        ({"devices": "3"}, 3),
        ({"devices": [1, 4]}, 2),
        ({"devices": "1,4"}, 2),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({"devices": -1, "accelerator": "cpu"}, 1),
        ({"devices": 8, "accelerator": "tpu"}, 1),
        ({"devices": "nonsense"}, 1),
        ({"devices": None}, 1),
        ({"devices": -3}, 1),
    ],
)
def test_processes_that_a_setting_asks_for(trainer: dict[str, Any], count: int) -> None:
    assert device_count(trainer) == count


def test_all_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_count({"devices": "auto", "accelerator": "auto"}) == 4
    assert device_count({"devices": -1, "accelerator": "gpu"}) == 4


def test_one_of_several_gpus_is_kept_for_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    trainer = {"devices": [2, 3], "accelerator": "gpu", "strategy": "ddp", "num_nodes": 1, "precision": "bf16-mixed"}
    assert one_device(trainer) == {**trainer, "devices": [2], "accelerator": "auto", "strategy": "auto"}


def test_no_process_is_started_for_one_device(tmp_path: Path) -> None:
    with Ranks.start({"devices": 1, "strategy": "auto"}, tmp_path) as ranks:
        ranks.join()
        ranks.meet()
        assert ranks.failure() is None
        assert ranks.wait() is None
    assert list(tmp_path.iterdir()) == []


def test_strategies_that_start_processes_are_named_with_what_to_take_instead(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"use trainer\.strategy=ddp_find_unused_parameters_true"):
        Ranks.start({"devices": 2, "strategy": "ddp_fork_find_unused_parameters_true"}, tmp_path)
