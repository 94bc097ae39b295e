import pytest
import torch
from tiny_tasks import Recorder, TinyData, build, trainer
from torch import Tensor, nn

from components.binding import BindingError, bind
from components.data import Bags, GaussianMixture
from components.losses import CrossEntropyLoss, EasyLLPLoss
from components.tasks import LabelProportionsTask


class Spy(nn.Module):
    """Cross-entropy with the labels of single samples, which training must not have."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, target)


class TestLabelProportions:
    def test_no_loss_gets_the_labels(self) -> None:
        task, data = build("label_proportions")
        for loss in (Spy(), CrossEntropyLoss()):
            with pytest.raises(BindingError, match="needs target; task=label_proportions offers"):
                bind(loss, task.offered, name="loss=spy", task="label_proportions")
        assert "target" not in task.quantities(data.fetch("train", torch.arange(4)))

    def test_labels_of_training_samples_change_nothing(self) -> None:
        ends = []
        for wrong in (False, True):
            task, data = build("label_proportions")
            if wrong:
                data.splits["train"]["target"] = (data.splits["train"]["target"] + 1) % 3
            trainer(max_epochs=2).fit(task, datamodule=data)
            ends.append([*task.state_dict().values()])
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))

    def test_validation_is_supervised_and_of_single_samples(self) -> None:
        task, _ = build("label_proportions")
        plain = TinyData("classification")
        plain.setup()
        recorder = Recorder()
        trainer(recorder).test(task, datamodule=plain, verbose=False)
        split = plain.splits["test"]
        expected = nn.functional.cross_entropy(task.eval().run_model(split["inputs"]).output, split["target"]).detach()
        assert recorder.rows[0][1]["test/loss"] == pytest.approx(float(expected), abs=1e-5)

    def test_training_needs_bags(self) -> None:
        task, _ = build("label_proportions")
        with pytest.raises(ValueError, match="trains on bags: take data=bags"):
            trainer().fit(task, datamodule=TinyData("classification"))
        with pytest.raises(ValueError, match="needs one class a sample"):
            LabelProportionsTask.facts({"target_kind": "multilabel"})

    def test_learns_single_samples_from_bags(self) -> None:
        """Two far-apart Gaussians in bags of four; the labels themselves are never shown."""
        data = Bags(GaussianMixture(size=400, classes=2, dimensions=4, separation=4.0), bag_size=4, batch_size=20)
        data.setup()
        task, _ = build("label_proportions", data=data, loss=EasyLLPLoss(data.facts()["class_counts"]))
        trainer(max_epochs=5).fit(task, datamodule=data)
        test = data.splits["test"]
        assert float((task.eval().predict(test)["prediction"] == test["target"]).float().mean()) > 0.9
