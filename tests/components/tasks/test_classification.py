import pytest
import torch
from tiny_tasks import CLASSES, TinyData, build, trainer
from torch import nn
from torchmetrics import Metric

from components.binding import Bound
from components.losses import BCEWithLogitsLoss, SphericalSoftmaxLoss
from components.tasks import ClassificationTask

FACTS = {"num_classes": 3, "target_kind": "multiclass"}


class TestKinds:
    def test_multiclass_one_hot_leaves_out_ignored_samples(self):
        task, _ = build("classification")
        got = task.multi_hot(torch.tensor([2, 0, -100]), torch.float32)
        assert got.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]

    def test_binary_is_one_logit(self):
        facts = ClassificationTask.facts({"num_classes": 2, "target_kind": "multiclass"}, kind="binary")
        assert facts == {"num_outputs": 1}
        task = ClassificationTask(nn.Linear(6, 1), kind="binary", num_classes=2)
        assert "target" not in task.offered and {"logits", "target_multi_hot"} <= task.offered
        quantities = task.quantities({"inputs": torch.randn(4, 6), "target": torch.tensor([0, 1, 1, 0]), "index": torch.arange(4)})
        assert quantities["target_multi_hot"].tolist() == [[0.0], [1.0], [1.0], [0.0]]
        columns = task.predict({"inputs": torch.randn(4, 6)})
        assert columns["prediction"].shape == (4,) and columns["probability"].shape == (4, 1)
        assert torch.equal(columns["prediction"], (columns["probability"][:, 0] > 0.5).long())

    def test_multilabel_trains(self):
        task, data = build("classification", data=TinyData("multilabel"), loss=BCEWithLogitsLoss())
        assert task.kind == "multilabel" and "target" not in task.offered
        trainer().fit(task, datamodule=data)
        columns = task.predict({"inputs": torch.randn(4, 6)})
        assert columns["prediction"].shape == columns["probability"].shape == (4, CLASSES)

    def test_probabilities_sum_to_one(self):
        task, _ = build("classification")
        columns = task.predict({"inputs": torch.randn(4, 6)})
        torch.testing.assert_close(columns["probability"].sum(1), torch.ones(4))
        assert torch.equal(columns["prediction"], columns["probability"].argmax(1))


class TestErrors:
    @pytest.mark.parametrize(
        ("facts", "kind", "message"),
        [
            (FACTS, "binray", "task.kind must be one of .* did you mean 'binary'"),
            (FACTS, "binary", "needs data with 2 classes, but got 3"),
            (FACTS, "multilabel", "task.kind=multilabel does not go with the data's target_kind.* 'multiclass'"),
            ({"num_classes": 3, "target_kind": "multilabel"}, "multiclass", "task.kind=multiclass does not go with .* 'multilabel'"),
            ({"num_targets": 1, "target_kind": "real"}, "auto", "must be multiclass or multilabel .* but got 'real'"),
        ],
    )
    def test_facts_refuse_what_does_not_fit(self, facts: dict, kind: str, message: str):
        with pytest.raises(ValueError, match=message):
            ClassificationTask.facts(facts, kind=kind)


class TestLossWithALinkOfItsOwn:
    """Metrics and predictions follow the probabilities that the loss means, the loss itself sees the model's scores."""

    def test_predictions_follow_the_loss(self):
        task, _ = build("classification", loss=SphericalSoftmaxLoss(1e-3))
        inputs = torch.randn(32, 6)
        squares = task.model(inputs).output.square() if hasattr(task.model(inputs), "output") else task.model(inputs).square()
        columns = task.predict({"inputs": inputs})
        assert torch.equal(columns["prediction"], squares.argmax(1))
        torch.testing.assert_close(columns["probability"], (squares + 1e-3) / (squares + 1e-3).sum(1, keepdim=True))

    def test_metrics_follow_the_loss(self):
        task, _ = build("classification", loss=SphericalSoftmaxLoss(1e-3))
        seen = []
        task.add_metrics({"spy": Bound(Spy(seen), {"preds": "logits"}, "metrics.spy")})
        batch = {"inputs": torch.randn(8, 6), "target": torch.zeros(8, dtype=torch.long), "index": torch.arange(8)}
        quantities = task.quantities(batch)
        task._update_metrics("val", quantities)
        torch.testing.assert_close(seen[0], (quantities["logits"].square() + 1e-3).log())


class Spy(Metric):
    def __init__(self, seen: list) -> None:
        super().__init__()
        self.seen = seen

    def clone(self) -> "Spy":
        return Spy(self.seen)

    def update(self, preds: torch.Tensor) -> None:
        self.seen.append(preds)

    def compute(self) -> torch.Tensor:
        return torch.tensor(0.0)
