from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from test_resume import SaveEverywhere, state
from tiny_tasks import Recorder, build, trainer
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from components.binding import bind
from components.callbacks import Checkpoints
from components.losses import CrossEntropyLoss
from components.models.base import split_output
from components.objective import Objective
from components.tasks import ClassIncrementalTask

SIX_EPOCHS: dict[str, Any] = {"options": {"total_steps": 30, "classes_per_phase": 1, "samples_per_class": 4}}


def made(**options: Any) -> tuple[ClassIncrementalTask, Any]:
    """Three phases of one class each, two epochs a phase."""
    merged = {"options": SIX_EPOCHS["options"] | options}
    task, data = build("class_incremental", **merged)
    assert isinstance(task, ClassIncrementalTask)
    return task, data


def fitted(recorder: Recorder | None = None, callbacks: Any = (), checkpoint: Path | None = None, loss: nn.Module | None = None, **options: Any):
    task, data = made(**options)
    if loss is not None:
        task.objective = Objective(bind(loss, task.offered, name="loss", task="class_incremental"))
    fit = trainer(recorder, max_epochs=6, callbacks=list(callbacks))
    fit.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return task, data, fit


class TestPhases:
    def test_share_the_epochs_and_bring_the_classes_in_order(self) -> None:
        task, _ = made()
        assert task.phase_ends == [1, 2, 3] and task.phase_epochs == 2
        seen = []
        task, data = made()
        fit = trainer(max_epochs=6, callbacks=[Watch(lambda t: seen.append((t.current_epoch, t.seen, t.old, t.learning)))])
        fit.fit(task, datamodule=data)
        assert seen == [(0, 1, 0, True), (1, 1, 0, True), (2, 2, 1, False), (3, 2, 1, False), (4, 3, 2, False), (5, 3, 2, False)]

    def test_the_best_weights_are_those_of_the_last(self, tmp_path: Path) -> None:
        """One class is easier than three: its validations are not to be compared with theirs."""
        task, data = made()
        fit = trainer(max_epochs=6)
        fit.callbacks.append(Checkpoints("val/acc", "max", directory=tmp_path))
        inputs = {"preds": "logits"}
        accuracy = bind(MulticlassAccuracy(3, average="micro"), task.offered, name="acc", task="class_incremental", inputs=inputs, method="update")
        task.add_metrics({"acc": accuracy})
        fit.fit(task, datamodule=data)
        best = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
        assert best["seen_classes"] == 3

    def test_first_may_bring_more_classes(self) -> None:
        assert made(first_classes=2)[0].phase_ends == [2, 3]
        assert made(first_classes=3)[0].phase_ends == [3]
        assert made(first_classes=2, classes_per_phase=5)[0].phase_ends == [2, 3]

    def test_a_frozen_extractor_stays_as_the_first_phase_left_it(self) -> None:
        bodies: list[Tensor] = []
        task, data = made(first_classes=2)
        fit = trainer(max_epochs=6, callbacks=[Watch(lambda t: bodies.append(t.model.body[0].weight.detach().clone()))])
        fit.fit(task, datamodule=data)
        assert task.phase_epochs == 3 and not torch.equal(bodies[0], bodies[3])
        assert all(torch.equal(bodies[3], later) for later in [*bodies[4:], task.model.body[0].weight])

    def test_a_distilled_extractor_goes_on_and_is_held(self) -> None:
        moved = {}
        for weight in (0.0, 1.0):
            task, _, _ = fitted(extractor="distilled", distillation=weight, classes_per_phase=2, first_classes=1)
            assert task.phase == 1 and not any(p.requires_grad for p in task.previous.parameters()) and not task.previous.training
            inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
            now, before = (split_output(model.requires_grad_(False)(inputs)).features for model in (task.model, task.previous))
            moved[weight] = float((now - before).square().mean())  # type: ignore[operator]
        assert 0 < moved[1.0] < moved[0.0]

    def test_are_said_by_the_checkpoint(self) -> None:
        task, _, _ = fitted()
        other, _ = made()
        assert other.seen == 1
        other.load_state_dict(task.state_dict())
        assert (other.phase, other.seen) == (2, 3)


class TestGaussians:
    def test_are_those_of_the_training_features(self) -> None:
        task, data, _ = fitted()
        train = data.splits["train"]
        features = split_output(task.model.eval()(train["inputs"])).features.detach()  # type: ignore[union-attr]
        for c in range(3):
            own = features[train["target"] == c].double()
            torch.testing.assert_close(task.class_means[c].double(), own.mean(0), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(task.class_covariances[c].double(), torch.cov(own.T, correction=0), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(task.class_roots[c] @ task.class_roots[c], task.class_covariances[c], atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("covariance", ["full", "diagonal"])
    def test_prototypes_are_drawn_from_them(self, covariance: str) -> None:
        task, _, _ = fitted(covariance=covariance)
        task.samples_per_class = 20_000
        drawn = task.prototypes().reshape(3, 20_000, -1)
        torch.testing.assert_close(drawn.mean(1), task.class_means, atol=0.05, rtol=0.05)
        found = drawn.var(1) if covariance == "diagonal" else torch.stack([torch.cov(rows.T) for rows in drawn])
        torch.testing.assert_close(found, task.class_covariances, atol=0.1, rtol=0.1)

    def test_of_old_classes_are_all_that_a_phase_knows_of_them(self) -> None:
        """Other samples of classes 0 in later phases change nothing."""
        ends = []
        for change in (False, True):
            task, data = made()

            def spoil(t: Any, data: Any = data, change: bool = change) -> None:
                if change and t.current_epoch == 2 and t.phase == 1:
                    data.splits["train"]["inputs"][data.splits["train"]["target"] == 0] = 77.0

            fit = trainer(max_epochs=6, callbacks=[Watch(spoil)])
            fit.fit(task, datamodule=data)
            ends.append([*task.state_dict().values()])
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))

    def test_loss_of_logits_learns_from_prototypes(self) -> None:
        before, _ = made()
        task, data, _ = fitted(loss=CrossEntropyLoss())
        quantities = task.train().quantities(data.fetch("train", torch.arange(4)))
        assert quantities["logits"].shape == (12, 3) and quantities["target"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert (task.classifier.weight != before.classifier.weight).all()

    def test_a_class_that_has_not_come_is_never_predicted(self) -> None:
        task, data = made()
        columns = task.eval().predict({"inputs": data.splits["val"]["inputs"]})
        assert (columns["prediction"] == 0).all() and (columns["probability"][:, 1:] == 0).all()


class TestAccuracy:
    def test_average_over_the_phases(self) -> None:
        recorder = Recorder()
        task, data, fit = fitted(recorder)
        fit.test(task, datamodule=data, verbose=False)
        rows = {key: [row[key] for _, row in recorder.rows if key in row] for key in ("val/average_incremental_acc", "test/average_incremental_acc")}
        assert len(rows["val/average_incremental_acc"]) == 6 and rows["val/average_incremental_acc"][0] == 1.0, "one class: always right"
        for stage, row in (("val", 0), ("test", 1)):
            now = task.accuracy(stage)
            expected = (float(task.accuracies[row, :2].sum()) + now) / 3
            assert rows[f"{stage}/average_incremental_acc"][-1] == pytest.approx(expected)
        assert task.accuracies[:, 0].tolist() == [1.0, 1.0]

    def test_validation_is_of_seen_classes(self) -> None:
        losses = []
        task, data = made()
        trainer(max_epochs=1).fit(task, datamodule=data)
        task.objective.loss.module.forward = lambda *a, **k: losses.append(1)  # type: ignore[method-assign]
        recorder = Recorder()
        trainer(recorder).test(task, datamodule=data, verbose=False)
        assert recorder.rows[0][1]["test/loss"] == pytest.approx(0, abs=1e-6) and not losses, "cross-entropy over one class that has come"


@pytest.mark.parametrize("options", [{}, {"extractor": "distilled", "covariance": "diagonal"}], ids=["frozen", "distilled"])
def test_any_checkpoint_continues_the_run_exactly(options: dict[str, Any], tmp_path: Path) -> None:
    """Through phases' ends, with prototypes drawn at random."""
    whole = Recorder()
    saver = SaveEverywhere(tmp_path, whole)
    torch.manual_seed(5)
    task, _, fit = fitted(whole, [saver, Seed(5)], loss=CrossEntropyLoss(), **options)
    expected = state(task, fit)
    assert task.phase == 2 and len(saver.saved) > 30
    chosen = [path for number, path in enumerate(saver.saved) if number % 4 == 1 and "end" not in path.name]
    for checkpoint in chosen:
        part = Recorder()
        resumed, _, fit = fitted(part, [Seed(99)], checkpoint=checkpoint, loss=CrossEntropyLoss(), **options)
        assert all(torch.equal(a, b) for a, b in zip(state(resumed, fit), expected, strict=True)), f"{checkpoint.name}: other weights or random state"
        assert part.rows == whole.rows[saver.saved[checkpoint] :], f"{checkpoint.name}: logged something else"


def test_bad_options() -> None:
    wrongs = {"classes_per_phase": 0, "first_classes": 4, "extractor": "thawed", "distillation": -1.0, "covariance": "none", "samples_per_class": 0}
    for name, value in wrongs.items():
        with pytest.raises(ValueError, match=name):
            made(**{name: value})
    task, data = made()
    with pytest.raises(ValueError, match="fit with datamodule="):
        trainer().fit(task, train_dataloaders=data.train_dataloader())
    with pytest.raises(ValueError, match="needs one class a sample"):
        ClassIncrementalTask.facts({"target_kind": "real"})


def test_a_loss_that_looks_at_inputs_is_refused() -> None:
    class Attacks(nn.Module):
        def forward(self, inputs: Tensor, logits: Tensor, target: Tensor) -> Tensor:
            return logits.sum()

    task, data = made()
    task.objective = Objective(bind(Attacks(), task.offered, name="loss=attacks", task="class_incremental"))
    with pytest.raises(ValueError, match="loss=attacks looks at inputs together with their logits or target"):
        trainer().fit(task, datamodule=data)


def test_needs_features() -> None:
    task, data = made()
    task.model = nn.Linear(6, 3)
    with pytest.raises(ValueError, match="needs a model that reports features"):
        task.eval().predict({"inputs": data.splits["val"]["inputs"]})


class Watch(lightning.Callback):
    """Looks at the task at the start of each epoch's first step, after the task has begun the epoch."""

    def __init__(self, look: Any) -> None:
        self.look = look

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready == 1:
            self.look(pl_module)


class Seed(lightning.Callback):
    """Other random numbers for a run that resumes, before its state is put back."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        torch.manual_seed(self.seed)
