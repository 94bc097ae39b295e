from typing import Any

import pytest
import torch
from tiny_tasks import MLP, Recorder, TinyData, trainer
from torch import Tensor, nn

from components.binding import bind
from components.losses import MannWhitneyLoss, PairwiseSoftmaxLoss
from components.models import FusedCrossNetwork
from components.objective import Objective
from components.tasks import AuctionsTask, CTRTask, RankingTask


class Scores(nn.Module):
    """Candidate j of every query scores j."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.arange(6.0).expand(len(inputs), -1)


def ranking(kind: str = "multiclass", **options: Any) -> RankingTask:
    return RankingTask(Scores(), num_classes=6, target_kind=kind, **options)


def batch(target: Tensor, **more: Tensor) -> dict[str, Tensor]:
    return {"inputs": torch.zeros(len(target), 1), "target": target, "index": torch.arange(len(target)), **more}


class TestRanking:
    def test_left_out_candidates_are_nan_and_are_never_drawn(self) -> None:
        left_out = torch.zeros(3, 6, dtype=torch.bool)
        left_out[:, 4:] = True
        quantities = ranking(negatives=200).quantities(batch(torch.tensor([0, 1, 4]), left_out=left_out))
        nan = torch.nan
        expected = torch.tensor([[1, 0, 0, 0, nan, nan], [0, 1, 0, 0, nan, nan], [0, 0, 0, 0, 1, nan]])
        torch.testing.assert_close(quantities["target_multi_hot"], expected, equal_nan=True)
        assert quantities["positive_scores"].tolist() == [0, 1, 4]
        drawn = [set(row.tolist()) for row in quantities["negative_scores"]]
        assert drawn == [{1, 2, 3}, {0, 2, 3}, {0, 1, 2, 3}]

    def test_popular_negatives_are_drawn_as_often_as_training_has_them(self) -> None:
        task = ranking(negatives=20_000, sampler="popular", class_counts=[50, 10, 30, 0, 60, 0])
        drawn = task.quantities(batch(torch.tensor([0])))["negative_scores"].long()[0]
        share = torch.bincount(drawn, minlength=6) / len(drawn)
        torch.testing.assert_close(share, torch.tensor([0, 0.1, 0.3, 0, 0.6, 0]), atol=0.02, rtol=0)

    def test_negatives_of_the_batch_are_what_the_other_queries_want(self) -> None:
        drawn = ranking(negatives=50, sampler="in_batch").quantities(batch(torch.tensor([0, 2, 2, 5])))["negative_scores"]
        assert [set(row.tolist()) for row in drawn] == [{2, 5}, {0, 5}, {0, 5}, {0, 2}]

    def test_one_of_several_wanted_is_drawn(self) -> None:
        target = torch.tensor([[1, 0, 0, 1, 0, 0]]).expand(400, -1)
        task = ranking("multilabel")
        positive = task.quantities(batch(target))["positive_scores"]
        assert set(positive.tolist()) == {0, 3} and 0.4 < float((positive == 3).float().mean()) < 0.6
        task.eval()
        assert set(task.quantities(batch(target))["positive_scores"].tolist()) == {0}
        assert set(task.quantities(batch(target))["negative_scores"].flatten().tolist()) == {1, 2, 4, 5}

    def test_training_draws_anew_and_evaluation_does_not(self) -> None:
        task = ranking(negatives=30)
        torch.manual_seed(0)
        first, second = (task.quantities(batch(torch.tensor([0])))["negative_scores"] for _ in range(2))
        assert not torch.equal(first, second)
        task.eval()
        state = torch.get_rng_state()
        first, second = (task.quantities(batch(torch.tensor([0])))["negative_scores"] for _ in range(2))
        assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)

    def test_a_query_without_negatives_gets_any(self) -> None:
        drawn = ranking("multilabel", negatives=5).quantities(batch(torch.ones(2, 6, dtype=torch.long)))["negative_scores"]
        assert drawn.shape == (2, 5)

    @pytest.mark.parametrize("loss", [PairwiseSoftmaxLoss(), MannWhitneyLoss(1.0)])
    @pytest.mark.parametrize("sampler", ["uniform", "popular", "in_batch"])
    def test_trains_on_sampled_scores(self, loss: nn.Module, sampler: str) -> None:
        data = TinyData("ranking")
        data.setup()
        task = RankingTask(
            MLP((6,), 3, hidden=(8,)), num_classes=3, negatives=4, sampler=sampler, class_counts=[7, 7, 6], optimizer=lambda p: torch.optim.Adam(p, lr=0.02)
        )
        task.objective = Objective(bind(loss, task.offered, name="loss", task="ranking"))
        recorder = Recorder()
        fit = trainer(recorder, max_epochs=8)
        fit.fit(task, datamodule=data)
        losses = [row["val/loss"] for _, row in recorder.rows if "val/loss" in row]
        assert losses[-1] < losses[0]

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"negatives": 0}, "task.negatives must be >= 1"),
            ({"sampler": "unform"}, "did you mean 'uniform'"),
            ({"sampler": "popular"}, "task.sampler=popular needs data that counts its candidates"),
            ({"kind": "binary"}, "task.kind must be multiclass or multilabel"),
        ],
    )
    def test_wrong_options(self, options: dict[str, Any], says: str) -> None:
        with pytest.raises(ValueError, match=says):
            ranking(**options)


class TestCTR:
    def test_logits_are_fused_branches(self) -> None:
        model = FusedCrossNetwork(4)
        given = {"inputs": torch.randn(5, 4), "target": torch.tensor([0, 1, 1, 0, 1]), "index": torch.arange(5)}
        for fuse, by_hand in (("logit", lambda b: b.mean(-1)), ("probability", lambda b: torch.logit(b.sigmoid().mean(-1)))):
            task = CTRTask(model, num_classes=2, fuse=fuse)
            quantities = task.quantities(given)
            assert quantities["branch_logits"].shape == (5, 1, 2) and quantities["target_multi_hot"].shape == (5, 1)
            torch.testing.assert_close(quantities["logits"], by_hand(quantities["branch_logits"]))
            torch.testing.assert_close(task.predict(given)["probability"], quantities["logits"].sigmoid())

    def test_one_output_whatever_the_branches(self) -> None:
        assert CTRTask.facts({"num_classes": 2, "target_kind": "multiclass"}) == {"num_outputs": 1}

    @pytest.mark.parametrize(("options", "says"), [({"fuse": "logits"}, "did you mean 'logit'"), ({"kind": "multiclass"}, "task.kind must be one of")])
    def test_wrong_options(self, options: dict[str, Any], says: str) -> None:
        with pytest.raises(ValueError, match=says):
            CTRTask(nn.Identity(), num_classes=2, **options)


class TestAuctions:
    def make(self) -> AuctionsTask:
        return AuctionsTask(MLP((6,), 3, hidden=(8,)), num_classes=3, target_kind="multilabel", teacher=MLP((6,), 3, hidden=(4,)))

    def test_clicks_stand_for_click_rates_that_are_not_known(self) -> None:
        given = batch(torch.tensor([[0, 1, 1]]), bids=torch.ones(1, 3)) | {"inputs": torch.randn(1, 6)}
        assert self.make().quantities(given)["click_rate"].tolist() == [[0, 1, 1]]
        assert self.make().quantities(given | {"click_rate": torch.full((1, 3), 0.2)})["click_rate"].tolist() == [[pytest.approx(0.2)] * 3]

    def test_data_without_bids_is_named(self) -> None:
        with pytest.raises(ValueError, match="task=auctions needs data with bids"):
            self.make().quantities(batch(torch.zeros(1, 3, dtype=torch.long)))
