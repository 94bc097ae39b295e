from pathlib import Path

import pytest
import torch
from tiny_tasks import MLP, TinyData, build, trainer
from torch import nn

from components.tasks import train_teacher
from components.tasks.distillation import classification_loss


class TestTeacher:
    def test_is_frozen_in_evaluation_mode_and_saved(self, tmp_path: Path):
        task, data = build("distillation")
        before = {k: v.clone() for k, v in task.teacher.state_dict().items()}
        modes = []
        forward = task.teacher.forward
        task.teacher.forward = lambda inputs: modes.append(task.teacher.training or any(m.training for m in task.teacher.modules())) or forward(inputs)  # type: ignore[method-assign]
        fit = trainer(max_epochs=2)
        fit.fit(task, datamodule=data)
        assert len(modes) > 10 and not any(modes)
        assert all(torch.equal(before[k], v) for k, v in task.teacher.state_dict().items())
        assert not any(p.requires_grad for p in task.teacher.parameters())
        of_the_teacher = {id(p) for p in task.teacher.parameters()}
        assert not any(id(p) in of_the_teacher for group in fit.optimizers[0].param_groups for p in group["params"])
        fit.save_checkpoint(tmp_path / "a.ckpt")
        saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(saved[f"teacher.{k}"], v) for k, v in before.items())

    def test_comes_back_from_the_checkpoint(self, tmp_path: Path):
        task, data = build("distillation")
        fit = trainer(max_epochs=1)
        fit.fit(task, datamodule=data)
        fit.save_checkpoint(tmp_path / "a.ckpt")
        resumed, data = build("distillation", seed=8)
        assert not torch.equal(next(resumed.teacher.parameters()), next(task.teacher.parameters()))
        trainer(max_epochs=2).fit(resumed, datamodule=data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
        assert torch.equal(next(resumed.teacher.parameters()), next(task.teacher.parameters()))
        assert not resumed.teacher.training

    def test_no_gradient_reaches_its_outputs(self):
        task, data = build("distillation")
        quantities = task.quantities(next(iter(data.train_dataloader())))
        assert not quantities["teacher_logits"].requires_grad and not quantities["teacher_features"].requires_grad
        assert quantities["logits"].requires_grad


class TestTrainTeacher:
    def data(self) -> TinyData:
        data = TinyData("distillation", samples=60)
        data.setup()
        return data

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return MLP((6,), 3, hidden=(16,), dropout=0.2)

    def test_learns_deterministically_and_freezes(self):
        data, ends = self.data(), []
        for _ in range(2):
            model = self.model()
            torch.rand(5)
            state = torch.get_rng_state()
            teacher = train_teacher(model, data, epochs=8, lr=1e-2, seed=4)
            assert teacher is model and not teacher.training and not any(p.requires_grad for p in teacher.parameters())
            assert torch.equal(torch.get_rng_state(), state)
            ends.append([p.clone() for p in teacher.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
        train = data.splits["train"]
        fresh = float((self.model().eval()(train["inputs"]).output.argmax(1) == train["target"]).float().mean())
        trained = float((teacher(train["inputs"]).output.argmax(1) == train["target"]).float().mean())
        assert trained > max(0.6, fresh)

    def test_its_seed_is_that_of_dropout(self):
        ends = [torch.cat([p.flatten() for p in train_teacher(self.model(), self.data(), epochs=1, lr=1e-2, seed=seed).parameters()]) for seed in (1, 2)]
        assert not torch.equal(*ends)

    def test_errors(self):
        with pytest.raises(ValueError, match="teacher_epochs must be >= 1, but got 0"):
            train_teacher(self.model(), self.data(), epochs=0, lr=1e-3, seed=0)
        with pytest.raises(ValueError, match="teacher_lr must be > 0"):
            train_teacher(self.model(), self.data(), epochs=1, lr=0.0, seed=0)
        data = self.data()
        data.splits["train"]["inputs"].fill_(torch.nan)
        with pytest.raises(ValueError, match="the teacher's training diverged"):
            train_teacher(self.model(), data, epochs=1, lr=1e-3, seed=0)

    def test_its_loss_fits_the_targets(self):
        logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
        assert classification_loss(logits, labels) == nn.functional.cross_entropy(logits, labels)
        many = nn.functional.one_hot(labels, 3)
        assert classification_loss(logits, many) == nn.functional.binary_cross_entropy_with_logits(logits, many.float())
        one = logits[:, :1]
        assert classification_loss(one, labels % 2) == nn.functional.binary_cross_entropy_with_logits(one[:, 0], (labels % 2).float())
