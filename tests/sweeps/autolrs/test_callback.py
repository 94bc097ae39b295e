"""The search inside a training: with every method, as a callback of anybody's module, and what it leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from components.schedules import Piecewise
from sweeps.autolrs import AutoLRS
from sweeps.autolrs.methods import METHODS, Paper
from sweeps.autolrs.plan import SearchFailed
from tests.conftest import Result

SHORT: dict[str, dict[str, Any]] = {
    "cooldown": {"candidates": 3, "probe": 0.1},
    "law": {"candidates": 3, "probe": 0.1},
    "paper": {"stage": 20, "longest": 20, "candidates": 2},
    "paper_reference": {"stage": 20, "longest": 40, "candidates": 2},
}


class Regression(lightning.LightningModule):
    """A module of one's own, with dropout and two groups, that sets no learning rate."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.1), nn.Linear(12, 1))
        self.lr = lr
        self.rates: list[list[float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return (self.net(batch[0]).squeeze(1) - batch[1]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", (self.net(batch[0]).squeeze(1) - batch[1]).square().mean())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": self.net[0].parameters()}, {"params": self.net[3].parameters(), "lr": self.lr / 10}]
        return torch.optim.SGD(groups, lr=self.lr, momentum=0.9)


def run(*callbacks: lightning.Callback, steps: int = 60, validate: bool = True, lr: float = 0.01, **options: Any) -> Regression:
    lightning.seed_everything(1, verbose=False)
    inputs = torch.randn(160, 6)
    target = inputs[:, 0] * inputs[:, 1] + 0.1 * torch.randn(160)
    train = DataLoader(TensorDataset(inputs[:128], target[:128]), batch_size=16, shuffle=True)
    val = DataLoader(TensorDataset(inputs[128:], target[128:]), batch_size=16)
    module = Regression(lr)
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=list(callbacks), **options
    )
    trainer.fit(module, train, val if validate else None)
    assert trainer.global_step == steps
    return module


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_module_of_ones_own(method: str, tmp_path: Path) -> None:
    search = AutoLRS(method, **SHORT[method], directory=str(tmp_path))  # type: ignore[arg-type]
    module = run(search)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == search.found() and found["method"] == method
    assert found["trained_steps"] == found["total_steps"] == 60
    assert found["explored_steps"] == search.explored_steps == sum(p["steps"] for s in found["stages"] for p in s["probes"]) > 0
    assert f"the search took {search.explored_steps} steps" in search.notes()[0]
    # the rates that were trained with are those that were written down
    replayed = Piecewise(at=found["at"], factors=found["factors"], total_steps=60)
    assert [rate for rate, _ in module.rates] == pytest.approx([0.01 * replayed(step) for step in range(60)], rel=1e-9)
    assert all(second == pytest.approx(first / 10) for first, second in module.rates)


def test_one_rate_and_one_candidate_is_training_at_that_rate_bit_for_bit() -> None:
    class Constant(lightning.Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int) -> None:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * (0.03 / 0.01)

    search = AutoLRS("paper", lr_min=0.03, lr_max=0.03, candidates=1, stage=20, longest=20)
    searched, constant = run(search), run(Constant())
    assert search.explored_steps == 6
    for (name, one), other in zip(searched.state_dict().items(), constant.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_cost_of_the_paper_is_counted_apart() -> None:
    search = AutoLRS("paper", lr_min=1e-3, lr_max=0.1, candidates=5, stage=20, longest=20)
    run(search, steps=100)
    assert search.explored_steps == 5 * 5 * 2 and [until for _, stretch in search.stretches for until in [stretch.until]] == [20, 40, 60, 80, 100]


def test_each_stage_is_an_optuna_study(tmp_path: Path) -> None:
    search = AutoLRS("paper", lr_min=1e-3, lr_max=0.1, candidates=3, stage=20, longest=20, directory=str(tmp_path))
    run(search)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "studies.journal")))
    names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
    assert names == ["stage-1", "stage-2", "stage-3"]
    study = optuna.load_study(study_name="stage-2", storage=storage)
    assert [t.params["lr"] for t in study.trials] == [e.probe.value for e in search.entries if e.probe.stage == 2]
    assert study.best_params["lr"] == search.decisions[1][1].chosen


def test_without_validation_data_it_says_what_probes_are_judged_by() -> None:
    search = AutoLRS(candidates=2, probe=0.1, lr_min=1e-3, lr_max=0.1)
    said: list[str] = []
    search.say = said.append
    run(search, validate=False)
    assert "no validation data" in said[0] and "probe_data=train" in said[0]
    assert search.entries[0].outcome.measured


def test_a_probe_that_diverges_harms_nothing() -> None:
    search = AutoLRS(candidates=4, probe=0.2, lr_min=1e-3, lr_max=1e5)
    module = run(search)
    assert any(entry.outcome.diverged for entry in search.entries)
    assert all(torch.isfinite(value).all() for value in module.state_dict().values()) and max(rate for rate, _ in module.rates) < 1e3


def test_if_all_diverges_it_is_said_and_the_start_is_kept() -> None:
    start: dict[str, torch.Tensor] = {}

    class Look(lightning.Callback):
        def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            start.update({name: value.clone() for name, value in pl_module.state_dict().items()})

        def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
            self.kept = all(torch.equal(value, start[name]) for name, value in pl_module.state_dict().items())

    look = Look()
    with pytest.raises(SearchFailed, match="training diverges with every lr"):
        run(AutoLRS(lr_min=1e15, lr_max=1e18), look)
    assert look.kept


def test_weight_decay_and_momentum_that_were_found_are_trained_with() -> None:
    search = AutoLRS(candidates=2, probe=0.1, lr_min=1e-3, lr_max=0.1, search=["weight_decay", "momentum"])

    class Look(lightning.Callback):
        def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            self.seen = [(group["weight_decay"], group["momentum"]) for group in trainer.optimizers[0].param_groups]

    look = Look()
    run(search, look)
    decay, momentum = (decision.chosen for _, decision in search.decisions if decision.question in ("weight_decay", "momentum"))
    assert look.seen == [(decay, momentum)] * 2


def test_an_option_that_the_optimizer_lacks_is_said() -> None:
    class Plain(Regression):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Rprop(self.parameters())

    trainer = lightning.Trainer(
        max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[AutoLRS(candidates=1, finalists=0, probe=0.5, lr_min=1e-3, lr_max=0.1, search=["weight_decay"])],
    )  # fmt: skip
    inputs = torch.randn(32, 6)
    with pytest.raises(ValueError, match="Rprop has no option weight_decay"):
        trainer.fit(Plain(), DataLoader(TensorDataset(inputs, inputs[:, 0]), batch_size=16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "autolrs"}, "method must be one of"),
        ({"stage": 10}, "stage is an option of method=paper, paper_reference, not of method=cooldown: leave it out"),
        ({"probe_data": "test"}, "probe_data must be one of"),
        ({"total_steps": 100, "probe": 200}, "at most the run's 100.*got 200"),
        ({"method": "paper", "total_steps": 100}, "schedule.stage must be at most the run's 100 steps"),
        ({"lr_min": 1.0, "lr_max": 0.1, "total_steps": 100}, "lr_min must be at most"),
        ({"lr_min": 0.0, "total_steps": 100}, "lr_min must be a finite number > 0"),
    ],
)
def test_what_cannot_be_searched_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoLRS(**options)


def test_a_run_without_an_end_is_refused() -> None:
    class Stopping(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
            trainer.should_stop = True

    with pytest.raises(ValueError, match="a budget with an end"):
        run(AutoLRS(lr_min=1e-3, lr_max=0.1), Stopping(), steps=-1, max_epochs=-1)


def test_the_probes_of_a_killed_search_are_not_repeated(tmp_path: Path) -> None:
    """A second session that finds the first one's probes in the directory runs only those that are missing, and ends the same."""
    whole = AutoLRS(candidates=4, probe=0.1, lr_min=1e-3, lr_max=0.1, directory=str(tmp_path / "whole"))
    module = run(whole)
    lines = (tmp_path / "whole" / "probes.jsonl").read_text().splitlines(keepends=True)
    half, other = "".join(lines[:3]), lines[0].replace('"seed": 0', '"seed": 9') + lines[1]
    for name, kept in (("half", half), ("torn", half + lines[3][:20]), ("other", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "probes.jsonl").write_text(kept)
        search = AutoLRS(candidates=4, probe=0.1, lr_min=1e-3, lr_max=0.1, directory=str(tmp_path / name))
        said: list[str] = []
        search.say = said.append
        again = run(search)
        assert sum(line.startswith("probe") for line in said) == len(whole.entries) - (0 if name == "other" else 2), name
        assert search.found() == whole.found()
        assert (tmp_path / name / "probes.jsonl").read_text() == (tmp_path / "whole" / "probes.jsonl").read_text()
        assert all(torch.equal(one, other) for one, other in zip(module.state_dict().values(), again.state_dict().values(), strict=True))


def test_probes_of_the_same_settings_but_another_start_are_not_gone_on_from(tmp_path: Path) -> None:
    search = AutoLRS(candidates=3, probe=0.1, lr_min=1e-3, lr_max=0.1, directory=str(tmp_path))
    run(search)
    header, first, *rest = (tmp_path / "probes.jsonl").read_text().splitlines()
    changed = json.loads(first)
    changed["value"] *= 2
    (tmp_path / "probes.jsonl").write_text("\n".join([header, json.dumps(changed), *rest]) + "\n")
    again = AutoLRS(candidates=3, probe=0.1, lr_min=1e-3, lr_max=0.1, directory=str(tmp_path))
    said: list[str] = []
    again.say = said.append
    run(again)
    assert sum(line.startswith("probe") for line in said) == len(search.entries) and again.found() == search.found()


TRAIN = ["data=digits", "data.fraction=0.3", "model=mlp", "trainer.max_steps=40", "trainer.max_epochs=-1"]
TRAIN += ["schedule=autolrs", "schedule.candidates=3", "schedule.probe=0.1"]


def run_dir(directory: Path) -> Path:
    (found,) = directory.glob("outputs/*/*")
    return found


def test_from_the_command_line(losskit: Callable[..., Result], workdir: Path) -> None:
    result = losskit("train", *TRAIN)
    assert result.code == 0, result.err
    for told in ("probe 1: range =", "probe 3: lr =", "step 0: lr =", "note: the search took"):
        assert told in result.err + result.out
    found = json.loads((run_dir(workdir) / "schedule" / "found.json").read_text())
    assert found["total_steps"] == found["trained_steps"] == 40 and found["stages"][-1]["question"] == "lr"
    (artifact,) = workdir.glob("mlartifacts/losskit/*/artifacts/schedule/found.json")
    assert json.loads(artifact.read_text())["trained_steps"] == 40


def test_what_it_found_runs_again_as_a_pure_function(losskit: Callable[..., Result], workdir: Path) -> None:
    first = losskit("train", *TRAIN, "name=searched", "test=false", "--json")
    assert first.code == 0, first.err
    again = losskit("train", *[o for o in TRAIN if "schedule" not in o], "schedule=replay", "schedule.run=searched", "test=false", "--json")
    assert again.code == 0, again.err
    assert again.json()["metrics"]["train/loss"] == pytest.approx(first.json()["metrics"]["train/loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["schedule.method=papr"], 2, "paper"),
        (["schedule.method=paper"], 2, "schedule.stage must be at most the run's 40 steps"),
        (["schedule.lr_min=1", "schedule.lr_max=0.1"], 2, "schedule.lr_min must be at most schedule.lr_max"),
        (["schedule.probe=100"], 2, "at most the run's 40"),
        (["schedule.lr_min=1e20", "schedule.lr_max=1e22"], 1, "training diverges with every lr"),
    ],
)
def test_what_cannot_be_searched_is_said_in_words(losskit: Callable[..., Result], workdir: Path, overrides: list[str], code: int, message: str) -> None:
    result = losskit("train", *[o for o in TRAIN if o.split("=")[0] not in {p.split("=")[0] for p in overrides}], *overrides)
    assert result.code == code and message in result.err and "Traceback" not in result.err


def test_a_searched_run_cannot_be_lengthened(losskit: Callable[..., Result], workdir: Path) -> None:
    assert losskit("train", *TRAIN, "name=searched", "test=false").code == 0
    longer = losskit("resume", "searched", "trainer.max_steps=80")
    assert longer.code == 1 and "schedule=replay" in longer.err
    assert math.isclose(json.loads((run_dir(workdir) / "schedule" / "found.json").read_text())["trained_steps"], 40)


def test_the_papers_method_is_the_published_one() -> None:
    kind, preset = METHODS["paper"]
    assert kind is Paper and preset == {}


def test_a_run_that_is_gone_on_with_fits_the_law_to_the_same_losses(
    losskit: Callable[..., Result], workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are kept in means over some steps: a checkpoint in the middle of one must not end it early."""
    options = ["data=digits", "data.fraction=0.2", "model=linear", "trainer.max_steps=1200", "trainer.max_epochs=-1", "schedule=autolrs", "schedule.method=law"]
    options += ["schedule.refits=[0.3]", "schedule.candidates=2", "schedule.finalists=0", "schedule.lr_min=0.01", "schedule.lr_max=0.1", "test=false"]
    options += ["trainer.val_check_interval=1.0", "trainer.check_val_every_n_epoch=1000"]
    (workdir / "stopping.py").write_text(STOPPING)
    monkeypatch.syspath_prepend(str(workdir))
    whole = losskit("train", *options, "name=whole")
    assert whole.code == 0, whole.err
    stop = ["allow_targets=[stopping]", "+callbacks.stop={_target_: stopping.StopOnce, step: 200}"]
    assert losskit("train", *options, *stop, "name=broken").code == 130
    resumed = losskit("resume", "broken")
    assert resumed.code == 0, resumed.err
    one, other = (json.loads(path.read_text()) for path in sorted(workdir.glob("outputs/*/*/schedule/found.json")))
    assert one["at"] == other["at"] and one["factors"] == other["factors"] and "law" in one["stages"][-1]["why"]


STOPPING = '''
import os, signal
from pathlib import Path
import lightning


class StopOnce(lightning.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and not Path("stopped").exists():
            Path("stopped").touch()
            os.kill(os.getpid(), signal.SIGINT)
'''
