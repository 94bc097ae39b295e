"""What all tasks share: the objective over time, logging, learning rate, losses that are not finite."""

from typing import Any

import lightning
import pytest
import torch
from tiny_tasks import CLASSES, Hits, Recorder, TinyData, build, trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from components.binding import bind
from components.losses import CrossEntropyLoss
from components.objective import Objective, Term
from components.tasks import ClassificationTask, NonFiniteLossError


class FromStep(nn.Module):
    """A regularizer that is 2 until a step and something else from then on."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__()
        self.at, self.value = at, value

    def forward(self, step: int) -> Tensor:
        return torch.tensor(2.0 if step < self.at else self.value)


class Tempered(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits * self.temperature, target)


def with_regularizer(regularizer: nn.Module, weight: Any = 1.0, **more: Any):
    task, data = build("classification", **more)
    bound = bind(regularizer, task.offered, name="regularizer.r", task="classification")
    task.objective = Objective(task.objective.loss, regularizers={"r": Term(bound, weight)})
    return task, data


class TestNonFinite:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("at", [0, 1, 3, 6])
    def test_names_the_step_the_component_and_the_last_values(self, at: int, bad: float):
        task, data = with_regularizer(FromStep(at, bad))
        with pytest.raises(NonFiniteLossError) as caught:
            trainer(max_epochs=3).fit(task, datamodule=data)
        text = str(caught.value)
        assert f"not finite at step {at + 1}: regularizer.r, total became {bad}" in text
        assert ("it was the first step" in text) == (at == 0) and ("regularizer.r=2" in text) == (at > 0)

    def test_counts_optimizer_steps_when_accumulating(self):
        task, data = with_regularizer(FromStep(2, float("nan")))
        with pytest.raises(NonFiniteLossError, match=r"at step 3: regularizer\.r"):
            trainer(max_epochs=4, accumulate_grad_batches=2).fit(task, datamodule=data)

    def test_is_noticed_at_the_end_at_the_latest(self):
        task, data = with_regularizer(FromStep(4, float("nan")), log_every=100)
        with pytest.raises(NonFiniteLossError, match="at step 5"):
            trainer(max_epochs=1).fit(task, datamodule=data)

    def test_check_finite_raises_before_a_checkpoint_and_logs_nothing(self):
        task, data = with_regularizer(FromStep(1, float("nan")), log_every=100)

        class Check(lightning.Callback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
                pl_module.check_finite()

        recorder = Recorder()
        with pytest.raises(NonFiniteLossError, match="at step 2"):
            trainer(recorder, callbacks=[Check()]).fit(task, datamodule=data)
        assert recorder.rows == []


class TestLogging:
    def test_means_over_the_steps_between_two_entries(self):
        task, data = with_regularizer(FromStep(6, 5.0), weight=0.5, log_every=4)
        seen: list[float] = []
        forward = task.objective.loss.forward
        task.objective.loss.forward = lambda q: seen.append(float((value := forward(q)).detach())) or value  # type: ignore[assignment,func-returns-value]
        recorder = Recorder()
        trainer(recorder, max_epochs=2, limit_val_batches=0).fit(task, datamodule=data)
        rows = [(step, row) for step, row in recorder.rows if "train/loss" in row]
        assert [step for step, _ in rows] == [4, 8, 10]
        for (_, row), part in zip(rows, (seen[:4], seen[4:8], seen[8:]), strict=True):
            assert row["train/loss"] == pytest.approx(sum(part) / len(part), abs=1e-6)
            assert row["train/total"] == pytest.approx(row["train/loss"] + 0.5 * row["train/regularizer.r"], abs=1e-6)
        assert [row["train/regularizer.r"] for _, row in rows] == [2.0, 3.5, 5.0]

    def test_windows_count_optimizer_steps_when_accumulating(self):
        task, data = build("classification", log_every=2)
        recorder = Recorder()
        trainer(recorder, max_epochs=2, accumulate_grad_batches=2, limit_val_batches=0).fit(task, datamodule=data)
        assert all(1 <= step <= 6 for step, _ in recorder.rows) and recorder.rows[-1][0] == 6

    def test_each_stage_has_its_own_copy_of_the_metrics(self):
        task, data = build("classification", log_every=1)
        bound = bind(Hits(), task.offered, name="m", task="classification", method="update")
        task.add_metrics({"acc": bound})
        copies = {stage: task.metrics_of(stage)["acc"].module for stage in ("train", "val", "test")}
        assert len({id(copy) for copy in copies.values()} | {id(bound.module)}) == 4
        recorder = Recorder()
        trainer(recorder, val_check_interval=2).fit(task, datamodule=data)
        rows = {key: row[key] for _, row in recorder.rows for key in row}
        assert {"train/acc", "val/acc"} <= set(rows)
        assert sum("val/acc" in row for _, row in recorder.rows) == 2 and sum("train/acc" in row for _, row in recorder.rows) == 1
        assert not bound.module.update_called

    def test_validation_is_the_mean_over_all_samples(self):
        task, data = build("classification", metrics=True)
        (result,) = trainer().validate(task, datamodule=data, verbose=False)
        val = data.splits["val"]
        task.eval()
        with torch.no_grad():
            logits = task.model(val["inputs"]).output
        assert len(logits) == 7
        assert result["val/loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, val["target"])), abs=1e-6)
        assert result["val/acc"] == pytest.approx(float((logits.argmax(1) == val["target"]).float().mean()))

    def test_higher_is_better_comes_from_the_metric(self):
        task, _ = build("classification", metrics=True)
        assert task.higher_is_better("val/acc") and not task.higher_is_better("val/loss")

    def test_nothing_is_read_back_between_two_entries(self):
        class Reads(TorchDispatchMode):
            def __init__(self) -> None:
                super().__init__()
                self.found: list[str] = []

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default):
                    self.found.append(str(func))
                return func(*args, **(kwargs or {}))

        task, data = build("classification", loss=Tempered(), log_every=4)  # losskit's own losses check targets on the CPU, where it is free
        reads, counts = Reads(), []

        class Count(lightning.Callback):
            def on_train_batch_start(self, *args: Any) -> None:
                reads.found.clear()
                reads.__enter__()

            def on_before_zero_grad(self, *args: Any) -> None:  # after the forward pass: optimizers are not ours to judge
                reads.__exit__(None, None, None)
                counts.append(list(reads.found))

        trainer(callbacks=[Count()]).fit(task, datamodule=data)
        assert counts == [[]] * 5


class TestOptimization:
    def test_a_losss_own_parameters_are_trained_and_saved(self):
        task, data = build("classification")
        loss = Tempered()
        task.objective = Objective(bind(loss, task.offered, name="loss", task="classification"))
        trainer().fit(task, datamodule=data)
        assert float(loss.temperature) != 1.0
        assert torch.equal(task.state_dict()["objective.loss.module.temperature"], loss.temperature)

    def test_the_learning_rate_is_the_schedules_at_each_optimizer_step(self):
        task, data = build("classification", schedule=lambda step: 1 / (1 + step))
        seen = []

        class Look(lightning.Callback):
            def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
                seen.append(optimizer.param_groups[0]["lr"])

        trainer(callbacks=[Look()], max_epochs=2, accumulate_grad_batches=2).fit(task, datamodule=data)
        assert seen == pytest.approx([0.1 / (1 + step) for step in range(6)])

    def test_transforms_see_training_batches_only(self):
        seen = []

        class Note(nn.Module):
            def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
                seen.append(len(batch["index"]))
                return batch

        task, data = build("classification", transforms=[Note(), Note()])
        fit = trainer()
        fit.fit(task, datamodule=data)
        fit.test(task, datamodule=data, verbose=False)
        assert seen == [4] * 10

    def test_mixed_batches_mix_the_losses(self):
        class Mix(nn.Module):
            def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:
                return {**batch, "mix_target": {"target": batch["target"].flip(0)}, "mix_weight": torch.tensor(0.25)}

        task, data = build("classification", transforms=[Mix()])
        batch = next(iter(data.train_dataloader()))
        logits, ce = task.model(batch["inputs"]).output, nn.functional.cross_entropy
        expected = 0.25 * ce(logits, batch["target"]) + 0.75 * ce(logits, batch["target"].flip(0))
        torch.testing.assert_close(task.training_step(batch, 0), expected)

    def test_asked_names_what_the_components_use(self):
        task, _ = with_regularizer(FromStep(0, 0.0), metrics=True)
        assert task.asked() == {"logits", "target", "step"}

    def test_works_without_a_builder(self):
        loss = bind(CrossEntropyLoss(), {"logits", "target"}, name="loss", task="classification")
        task = ClassificationTask(nn.Linear(6, CLASSES), Objective(loss), optimizer=torch.optim.Adam, num_classes=CLASSES)
        fit = trainer()
        fit.fit(task, datamodule=TinyData("classification"))
        assert fit.global_step == 5
