"""Schedule-Free through the whole loop: x is evaluated, y trained, and nothing that is looked at changes a bit of what follows."""

import copy
from functools import partial
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn

from components.averaging import EMA
from components.callbacks import Checkpoints, OptimizerModes
from components.optimizers import schedule_free_adamw, schedule_free_sgd
from tests.components.tasks.tiny_tasks import Recorder, build, trainer

FREE = {"adamw": partial(schedule_free_adamw, lr=0.05, warmup_steps=3, weight_decay=0.01), "sgd": partial(schedule_free_sgd, lr=0.5)}


def made(optimizer, **options):
    return build("classification", optimizer=FREE[optimizer], schedule=None, dropout=0.2, **options)


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


class Watcher(Recorder):
    """The weights that each validation sees."""

    def __init__(self, task) -> None:
        super().__init__()
        self.seen: list[list[torch.Tensor]] = []
        evaluate = task.validation_step

        def watched(batch, batch_idx):
            if batch_idx == 0:
                self.seen.append(weights(task))
            evaluate(batch, batch_idx)

        task.validation_step = watched


@pytest.mark.parametrize("optimizer", FREE)
class TestModes:
    def test_agrees_with_a_plain_loop(self, optimizer):
        task, data = build("classification", optimizer=FREE[optimizer], schedule=None)
        alone = copy.deepcopy(task)
        batches = []
        step = task.training_step
        task.training_step = lambda batch, batch_idx: batches.append(batch) or step(batch, batch_idx)
        watcher = Watcher(task)
        trainer(watcher, max_epochs=3).fit(task, datamodule=data)

        plain = FREE[optimizer](alone.parameters())
        plain.train()
        evaluated = []
        for number, batch in enumerate(batches):
            plain.zero_grad()
            nn.functional.cross_entropy(alone.model(batch["inputs"]).output, batch["target"]).backward()
            plain.step()
            if number % 5 == 4:
                twin, kept = FREE[optimizer](alone.parameters()), weights(alone)
                twin.load_state_dict(plain.state_dict())
                twin.eval()
                evaluated.append(weights(alone))
                with torch.no_grad():
                    for p, value in zip(alone.parameters(), kept, strict=True):
                        p.copy_(value)
        assert len(watcher.seen) == 3
        assert all(same(ours, theirs) for ours, theirs in zip(watcher.seen, evaluated, strict=True))
        assert same(weights(task), evaluated[-1]), "the model ends with the weights to evaluate"
        assert not same(weights(alone), evaluated[-1])

    def test_the_weights_evaluated_are_the_mean_of_the_steps(self, optimizer):
        """x is the plain mean of z, whatever the package does in between."""
        task, data = build("classification", optimizer=partial(FREE[optimizer], warmup_steps=0) if optimizer == "adamw" else FREE[optimizer], schedule=None)
        steps = []
        end = task.on_train_batch_end

        def keeping(outputs, batch, batch_idx):
            state = task.trainer.optimizers[0].state
            steps.append([state[p]["z"].clone() for p in task.parameters()])
            end(outputs, batch, batch_idx)

        task.on_train_batch_end = keeping
        trainer(max_epochs=2).fit(task, datamodule=data)
        for parameter, *iterates in zip(task.parameters(), *steps, strict=True):
            assert float((parameter.detach() - torch.stack(iterates).mean(0)).abs().max()) < 1e-4

    def test_validations_change_nothing(self, optimizer):
        ends = []
        for options in ({"limit_val_batches": 0}, {"val_check_interval": 1}):
            task, data = made(optimizer)
            trainer(max_epochs=2, **options).fit(task, datamodule=data)
            ends.append(weights(task))
        assert same(*ends)

    @pytest.mark.parametrize("stop", [7, 10])  # in an epoch, at the end of one
    def test_resumes_bit_for_bit(self, optimizer, stop, tmp_path: Path):
        class SaveAt(lightning.Callback):
            def on_train_batch_end(self, loop, *args):
                if loop.global_step == stop:
                    loop.save_checkpoint(tmp_path / "a.ckpt")

        whole, data = made(optimizer)
        trainer(max_epochs=4, callbacks=[SaveAt()]).fit(whole, datamodule=data)
        resumed, data = made(optimizer, seed=5)
        loop = trainer(max_epochs=4)
        loop.fit(resumed, datamodule=data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
        assert loop.global_step == 20
        assert same(weights(whole), weights(resumed))

    def test_a_checkpoint_holds_both(self, optimizer, tmp_path: Path):
        task, data = made(optimizer)
        watcher = Watcher(task)

        class InValidation(Checkpoints):
            """Also saves in the middle of a validation, when the model holds the weights to evaluate."""

            def on_validation_epoch_end(self, loop, module):
                loop.save_checkpoint(self.path("inside.ckpt"))

        loop = trainer(watcher, max_epochs=2, callbacks=[InValidation(directory=tmp_path)], enable_checkpointing=True)
        loop.fit(task, datamodule=data)
        at_end, inside = (torch.load(tmp_path / name, weights_only=True) for name in ("last.ckpt", "inside.ckpt"))
        names = [name for name, _ in task.named_parameters()]
        for checkpoint in (at_end, inside):
            assert same([checkpoint["state_dict"][name] for name in names], watcher.seen[-1])
            assert all(group["train_mode"] for state in checkpoint["optimizer_states"] for group in state["param_groups"])
            training = [checkpoint["current_model_state"][name] for name in names]
            assert not same(training, watcher.seen[-1])
            assert same(training, [at_end["current_model_state"][name] for name in names])
        fresh, data = made(optimizer, seed=3)
        fresh.load_state_dict(at_end["state_dict"])
        assert loop.test(task, datamodule=data, verbose=False) == trainer().test(fresh, datamodule=data, verbose=False)

    def test_accumulates(self, optimizer):
        task, data = made(optimizer)
        loop = trainer(max_epochs=2, accumulate_grad_batches=2)
        loop.fit(task, datamodule=data)
        assert loop.global_step == 6 and all(bool(p.isfinite().all()) for p in task.parameters())


@pytest.mark.parametrize("average", [EMA(), StochasticWeightAveraging(swa_lrs=0.1)])
def test_a_second_average_is_refused(average):
    task, data = made("sgd")
    with pytest.raises(ValueError, match=f"SGDScheduleFree averages the weights itself.*averaging=none, but got '{type(average).__name__}'"):
        trainer(callbacks=[average]).fit(task, datamodule=data)


def test_any_optimizer_with_the_two_methods_has_its_modes():
    class Halves(torch.optim.SGD):
        """Evaluates with half of each weight."""

        def eval(self):
            self.scale(0.5)

        def train(self):
            self.scale(2.0)

        @torch.no_grad()
        def scale(self, factor):
            for p in self.param_groups[0]["params"]:
                p.mul_(factor)

    task, data = build("classification", optimizer=partial(Halves, lr=0.0))
    start, watcher = weights(task), Watcher(task)
    trainer(watcher, max_epochs=1).fit(task, datamodule=data)
    assert same(watcher.seen[0], weights(task))
    assert same(weights(task), start)  # the first train() doubles


def test_other_optimizers_are_left_alone(tmp_path: Path):
    task, data = build("classification", optimizer=partial(torch.optim.SGD, lr=0.1))
    loop = trainer(max_epochs=1)
    loop.fit(task, datamodule=data)
    assert any(isinstance(c, OptimizerModes) for c in loop.callbacks)
    loop.save_checkpoint(tmp_path / "a.ckpt")
    assert "current_model_state" not in torch.load(tmp_path / "a.ckpt", weights_only=True)
