import pytest
import torch
from tiny_tasks import TinyData, build
from torch import nn

from components.data.base import Batch
from components.losses import StatisticalDistanceLoss
from components.models import MLP
from components.tasks import ProbabilisticSegmentationTask


@pytest.fixture
def task() -> ProbabilisticSegmentationTask:
    made, _ = build("probabilistic_segmentation")
    assert isinstance(made, ProbabilisticSegmentationTask)
    return made


@pytest.fixture
def batch() -> Batch:
    data = TinyData("probabilistic_segmentation")
    data.setup()
    return next(iter(data.train_dataloader()))


def test_in_training_the_posterior_sees_one_raters_mask_at_random(task: ProbabilisticSegmentationTask, batch: Batch) -> None:
    torch.manual_seed(0)
    chosen = torch.zeros(4, 2, dtype=torch.bool)
    for _ in range(12):
        target = task.quantities(batch)["target"]
        is_one = torch.stack([(target == batch["rater_targets"][:, r]).flatten(1).all(1) for r in range(2)], 1)
        assert is_one.any(1).all()
        chosen |= is_one
    assert chosen.all()


def test_as_many_samples_as_raters_or_as_asked(task: ProbabilisticSegmentationTask, batch: Batch) -> None:
    assert task.quantities(batch)["sample_logits"].shape == (4, 2, 3, 4, 4)
    other, _ = build("probabilistic_segmentation", samples=5, eval_samples=6)
    assert other.quantities(batch)["sample_logits"].shape[1] == 5
    assert other.eval().quantities(batch)["sample_logits"].shape[1] == 6


def test_evaluation_draws_from_the_prior_alike_at_any_time(task: ProbabilisticSegmentationTask, batch: Batch) -> None:
    task.eval()
    first = task.quantities(batch)
    torch.randn(5)
    again = task.quantities({**batch, "rater_targets": batch["rater_targets"].flip(1)})
    assert torch.equal(first["sample_logits"], again["sample_logits"]), "samples know nothing of the masks"
    assert not torch.equal(first["latent_kl"], again["latent_kl"])
    assert torch.equal(first["target"], batch["rater_targets"][:, 0])
    alone = task.quantities({name: value[2:3] for name, value in batch.items()})
    torch.testing.assert_close(alone["sample_logits"], first["sample_logits"][2:3], atol=1e-5, rtol=1e-5)
    assert first["sample_logits"].std(1).max() > 0


def test_predicts_class_area_and_disagreement(task: ProbabilisticSegmentationTask, batch: Batch) -> None:
    columns = task.eval().predict({"inputs": batch["inputs"]})
    assert columns["prediction"].shape == (4, 4, 4) and columns["area"].shape == (4, 3) and columns["disagreement"].shape == (4,)
    torch.testing.assert_close(columns["area"].sum(1), torch.ones(4))
    assert ((columns["disagreement"] >= 0) & (columns["disagreement"] <= 1)).all()


def test_trains_with_a_statistical_distance(batch: Batch) -> None:
    task, _ = build("probabilistic_segmentation", loss=StatisticalDistanceLoss(distance="energy"))
    task.training_step(batch, 0).backward()
    assert all(p.grad is not None for p in task.model.parameters())


def test_data_without_raters_and_models_without_a_latent_are_refused(task: ProbabilisticSegmentationTask, batch: Batch) -> None:
    with pytest.raises(ValueError, match="needs data with rater_targets"):
        task.quantities({name: value for name, value in batch.items() if name != "rater_targets"})
    with pytest.raises(ValueError, match=r"needs a model with a latent .* model is MLP"):
        ProbabilisticSegmentationTask(MLP((4,), 2), num_classes=2)
    for wrong in ({"num_classes": 1}, {"samples": 0}, {"eval_samples": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ProbabilisticSegmentationTask(nn.Identity(), **{"num_classes": 2, **wrong})
    with pytest.raises(ValueError, match="target_kind"):
        ProbabilisticSegmentationTask.facts({"target_kind": "real"})
