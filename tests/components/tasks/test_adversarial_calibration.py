from pathlib import Path

import pytest
import torch
from test_resume import SaveEverywhere, state
from tiny_tasks import MLP, Recorder, TinyData, build, trainer
from torch.nn.functional import cross_entropy, normalize

from components.losses import AdversarialCalibrationLoss
from components.tasks import AdversarialCalibrationTask, train_teacher
from components.tasks.adversarial_calibration import CalibrationHead, projected_gradient


def trained(**options):
    """A task whose encoder knows its classes, fitted for one epoch, so that it has its centres."""
    task, data = build("adversarial_calibration", options={"rank": None, "epsilon": 0.4, "attack_steps": 5, **options})
    train_teacher(task.model.requires_grad_(True), data, epochs=15, lr=1e-2)
    trainer(max_epochs=1).fit(task, datamodule=data)
    return task.eval(), data


class TestAttack:
    def test_stays_in_the_box_and_never_helps(self) -> None:
        task, data = trained()
        batch = data.fetch("train", torch.arange(20))
        clean = cross_entropy(task.scores(task.encode(batch["inputs"])), batch["target"], reduction="none")
        changed = task.attacked(batch["inputs"], batch["target"])
        attacked = cross_entropy(task.scores(task.encode(changed)), batch["target"], reduction="none")
        assert (changed - batch["inputs"]).abs().max() <= 0.4 + 1e-6
        assert (attacked >= clean).all() and attacked.mean() > clean.mean() + 0.1
        assert not changed.requires_grad and all(p.grad is None for p in task.model.parameters())

    def test_works_where_gradients_are_off(self) -> None:
        task, data = trained()
        batch = data.fetch("train", torch.arange(20))
        expected = task.attacked(batch["inputs"], batch["target"])
        with torch.inference_mode():
            assert torch.equal(task.attacked(batch["inputs"].clone(), batch["target"].clone()), expected)

    def test_through_the_head_is_at_least_as_bad_for_the_head(self) -> None:
        task, data = trained()
        batch = data.fetch("train", torch.arange(20))
        losses = [
            cross_entropy(task.scores(task.head(task.encode(task.attacked(batch["inputs"], batch["target"], through_head=way)))), batch["target"])
            for way in (False, True)
        ]
        assert losses[1] >= losses[0] - 0.02

    def test_of_a_linear_loss_is_a_corner_of_the_box(self) -> None:
        slope = torch.tensor([[1.0, -2.0, 0.5]])
        start = torch.tensor([[0.5, 0.5, 0.99]])
        found = projected_gradient(lambda x, y: (x * slope).sum(1), start, torch.zeros(1), epsilon=0.1, steps=10, step_size=0.025, input_range=(0.0, 1.0))
        torch.testing.assert_close(found, torch.tensor([[0.6, 0.4, 1.0]]))

    def test_of_no_size_changes_nothing(self) -> None:
        task, data = trained(epsilon=0.0, attack_step_size=0.1)
        batch = data.fetch("train", torch.arange(20))
        assert torch.equal(task.attacked(batch["inputs"], batch["target"]), batch["inputs"])
        q = task.quantities(batch)
        fresh = CalibrationHead(16, None)
        names = ("teacher_features", "class_centers", "target")
        heads = {name: fresh(q["teacher_features"]) for name in ("adversarial_embeddings", "clean_embeddings")}
        assert AdversarialCalibrationLoss("l2")(**heads, **{n: q[n] for n in names}).item() == pytest.approx(0, abs=1e-10)
        zero_shot = cross_entropy(task.scores(q["teacher_features"]), q["target"])
        torch.testing.assert_close(AdversarialCalibrationLoss()(**heads, **{n: q[n] for n in names}), zero_shot)


class TestFrozenSide:
    def test_encoder_and_centres_stay_and_get_no_gradient(self) -> None:
        task, data = build("adversarial_calibration")
        before = {k: v.clone() for k, v in task.model.state_dict().items()}
        fit = trainer(max_epochs=2)
        fit.fit(task, datamodule=data)
        assert all(torch.equal(before[k], v) for k, v in task.model.state_dict().items())
        assert not task.model.training and not any(p.requires_grad or p.grad is not None for p in task.model.parameters())
        trained_ones = {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}
        assert trained_ones == {id(p) for p in task.head.parameters()}
        assert not task.class_centers.requires_grad

    def test_centres_are_the_mean_embeddings(self) -> None:
        task, data = build("adversarial_calibration")
        trainer().fit(task, datamodule=data)
        train = data.splits["train"]
        embedded = normalize(task.encode(train["inputs"]))
        expected = normalize(torch.stack([embedded[train["target"] == c].mean(0) for c in range(3)]))
        torch.testing.assert_close(task.class_centers, expected)

    def test_a_low_rank_head_is_less_than_a_hundredth_of_the_whole(self) -> None:
        """The preset's: an MLP 64-512-512-64 and rank 16."""
        encoder, head = MLP((1, 8, 8), 10, hidden=(512, 512, 64)), CalibrationHead(64, 16)
        sizes = [sum(p.numel() for p in module.parameters()) for module in (encoder, head)]
        assert sizes[1] < 0.01 * sum(sizes)

    @pytest.mark.parametrize("rank", [None, 3])
    def test_the_head_starts_as_the_identity(self, rank: int | None) -> None:
        features = torch.randn(5, 8)
        torch.testing.assert_close(CalibrationHead(8, rank)(features), features)

    def test_any_checkpoint_continues_the_run_exactly(self, tmp_path: Path) -> None:
        whole = Recorder()
        saver = SaveEverywhere(tmp_path, whole)
        task, data = build("adversarial_calibration")
        fit = trainer(whole, max_epochs=2, callbacks=[saver])
        fit.fit(task, datamodule=data)
        expected = state(task, fit)[:-1]  # nothing is drawn
        for checkpoint in [path for number, path in enumerate(saver.saved) if number % 2 and "end" not in path.name]:
            part = Recorder()
            resumed, again = build("adversarial_calibration", seed=8)
            fit = trainer(part, max_epochs=2)
            fit.fit(resumed, datamodule=again, ckpt_path=checkpoint, weights_only=True)
            assert all(torch.equal(a, b) for a, b in zip(state(resumed, fit)[:-1], expected, strict=True)), checkpoint.name
            assert part.rows == whole.rows[saver.saved[checkpoint] :], checkpoint.name


def test_bad_options() -> None:
    wrongs = {"temperature": 0.0, "epsilon": -0.1, "attack_steps": 0, "attack_step_size": 0.0, "input_range": (1, 0), "rank": 17, "teacher_lr": 0.0}
    for name, value in wrongs.items():
        with pytest.raises(ValueError, match=name):
            build("adversarial_calibration", options={name: value})
    task, _ = build("adversarial_calibration")
    data = TinyData("adversarial_calibration")
    data.setup()
    with pytest.raises(ValueError, match="takes class centres from its data"):
        trainer().fit(task, train_dataloaders=data.train_dataloader())
    with pytest.raises(ValueError, match="needs one class a sample"):
        AdversarialCalibrationTask.facts({"target_kind": "real"})
