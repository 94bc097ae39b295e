import pytest
import torch
from tiny_tasks import Recorder, TinyData, build, trainer
from torch import Tensor, nn
from torchmetrics import Metric

from components.binding import bind
from components.objective import Objective
from components.tasks import EmbeddingTask


class NearestIsRight(Metric):
    """Recall at 1 over everything that was gathered."""

    embeddings: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, target: Tensor) -> None:
        self.embeddings.append(embeddings)
        self.labels.append(target)

    def compute(self) -> Tensor:
        embeddings, labels = torch.cat(self.embeddings), torch.cat(self.labels)
        nearest = torch.cdist(embeddings, embeddings).fill_diagonal_(torch.inf).argmin(1)
        return (labels[nearest] == labels).float().mean()


class ForEachClass(nn.Module):
    """A loss that knows the classes of training, as softmax losses for metric learning do."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 3
        self.centres = nn.Parameter(torch.eye(3, 5))

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(embeddings @ self.centres.T, target)


def test_retrieval_is_over_the_whole_split_and_not_in_training():
    task, data = build("embedding")
    task.add_metrics({"recall": bind(NearestIsRight(), task.offered, name="m", task="embedding", method="update")})
    recorder = Recorder()
    fit = trainer(recorder)
    fit.fit(task, datamodule=data)
    val = data.splits["val"]
    task.eval()
    with torch.no_grad():
        embeddings = task.model(val["inputs"]).output
    metric = NearestIsRight()
    metric.update(embeddings, val["target"])
    logged = {key: row[key] for _, row in recorder.rows for key in row}
    assert logged["val/recall"] == pytest.approx(float(metric.compute())) and "train/recall" not in logged


def test_a_loss_of_the_training_classes_has_no_value_on_others():
    data = TinyData("embedding")
    data.setup()
    data.splits["val"]["target"] += 3  # classes that training never sees
    task, _ = build("embedding", data=data)
    task.objective = Objective(bind(ForEachClass(), task.offered, name="loss", task="embedding"))
    recorder = Recorder()
    fit = trainer(recorder)
    fit.fit(task, datamodule=data)
    fit.test(task, datamodule=data, verbose=False)
    logged = {key for _, row in recorder.rows for key in row}
    assert "val/loss" not in logged and {"train/loss", "test/loss"} <= logged


def test_facts():
    data = {"target_kind": "multiclass", "num_classes": 3}
    assert EmbeddingTask.facts(data, embedding_dim=7) == {"num_outputs": 7, "embedding_dim": 7}
    with pytest.raises(ValueError, match="embedding_dim must be >= 1, but got 0"):
        EmbeddingTask.facts(data, embedding_dim=0)
    with pytest.raises(ValueError, match=r"one class a sample.* but got 'real'"):
        EmbeddingTask.facts({"target_kind": "real"})
