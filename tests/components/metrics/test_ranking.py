import math

import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_precision, retrieval_recall, retrieval_reciprocal_rank

from components.losses import MannWhitneyLoss
from components.metrics import BinaryLogLoss, RankingAUC, RankingMRR, RankingNDCG, RankingPrecision, RankingRecall, Welfare


@pytest.fixture
def scores() -> Tensor:
    return torch.randn(12, 30, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def wanted() -> Tensor:
    wanted = (torch.rand(12, 30, generator=torch.Generator().manual_seed(1)) < 0.15).float()
    wanted[3] = 0.0  # a query without a wanted candidate is left out of the mean
    return wanted


@pytest.mark.parametrize(
    ("metric", "theirs"),
    [
        (RankingRecall(5), lambda p, t: retrieval_recall(p, t, top_k=5)),
        (RankingPrecision(5), lambda p, t: retrieval_precision(p, t, top_k=5)),
        (RankingNDCG(5), lambda p, t: retrieval_normalized_dcg(p, t, top_k=5)),
        (RankingNDCG(100), lambda p, t: retrieval_normalized_dcg(p, t)),
        (RankingMRR(), lambda p, t: retrieval_reciprocal_rank(p - p.min() + 1, t)),  # theirs counts what scores below 0 as unwanted
    ],
    ids=["recall", "precision", "ndcg", "ndcg, long", "mrr"],
)
def test_agrees_with_torchmetrics(metric, theirs, scores: Tensor, wanted: Tensor) -> None:
    metric.reset()
    metric.update(scores, wanted)
    each = [theirs(p, t.long()) for p, t in zip(scores, wanted, strict=True) if t.any()]
    torch.testing.assert_close(metric.compute(), torch.stack(each).mean())


@pytest.mark.parametrize("make", [lambda: RankingRecall(3), lambda: RankingPrecision(3), lambda: RankingNDCG(3), RankingMRR, RankingAUC])
def test_left_out_is_as_if_not_there(make, scores: Tensor, wanted: Tensor) -> None:
    first, second = make(), make()
    gone = wanted.clone()
    gone[:, 20:] = math.nan
    first.update(scores, gone)
    second.update(scores[:, :20], wanted[:, :20])
    torch.testing.assert_close(first.compute(), second.compute())


def test_auc_is_sklearns_with_ties_and_at_large_scores(scores: Tensor, wanted: Tensor) -> None:
    for values in (scores, scores.round(), 100 * scores + 1000):
        metric = RankingAUC()
        metric.update(values, wanted)
        assert float(metric.compute()) == pytest.approx(roc_auc_score(wanted.flatten(), values.flatten()), abs=1e-6)


def test_auc_equals_counting_pairs(scores: Tensor, wanted: Tensor) -> None:
    values = scores.round()
    metric = RankingAUC()
    metric.update(values, wanted)
    above = values[wanted > 0][:, None] - values[wanted == 0]
    assert float(metric.compute()) == pytest.approx(float(((above > 0).double() + 0.5 * (above == 0)).mean()), abs=1e-6)


def test_area_over_the_curve_is_bounded_by_the_loss() -> None:
    for seed in range(10):
        s = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))
        apart = ~torch.eye(8, dtype=torch.bool)
        metric = RankingAUC()
        metric.update(s, (~apart).float())
        assert 1 - metric.compute() <= MannWhitneyLoss(1.0)(s.diagonal(), s[apart].view(8, 7)) / math.log(2)


def test_auc_sees_a_shift_of_one_query_and_mrr_does_not() -> None:
    s, wanted = torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.eye(2)
    found = {}
    for name, values in (("plain", s), ("shifted", s + torch.tensor([[5.0], [0.0]]))):
        auc, mrr = RankingAUC(), RankingMRR()
        auc.update(values, wanted)
        mrr.update(values, wanted)
        found[name] = float(auc.compute()), float(mrr.compute())
    assert found == {"plain": (1.0, 1.0), "shifted": (0.75, 1.0)}


def test_log_loss_is_sklearns(scores: Tensor, wanted: Tensor) -> None:
    metric = BinaryLogLoss()
    metric.update(scores, wanted)
    assert float(metric.compute()) == pytest.approx(log_loss(wanted.flatten(), scores.sigmoid().flatten().double()), abs=1e-6)


class TestWelfare:
    def test_by_hand(self) -> None:
        metric = Welfare()
        bids, rate = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[0.1, 0.5], [0.6, 0.3]])
        metric.update(torch.logit(torch.tensor([[0.3, 0.5], [0.1, 0.2]])), bids, rate)  # bid x rate: .6 > .5 wins .2 of .5; .6 > .1 wins .9 of .9
        assert float(metric.compute()) == pytest.approx(1.1 / 1.4)

    def test_true_click_rates_are_the_best(self) -> None:
        metric = Welfare()
        rate = torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
        metric.update(torch.logit(rate), torch.rand(50, 6, generator=torch.Generator().manual_seed(1)), rate)
        assert metric.compute() == 1


def test_wrong_input_is_named(scores: Tensor) -> None:
    for metric in (RankingMRR(), RankingAUC(), BinaryLogLoss()):
        with pytest.raises(ValueError, match=r"preds and what goes with them .* but got \(12, 30\) and \(12, 29\)"):
            metric.update(scores, scores[:, 1:])
    with pytest.raises(ValueError, match="k must be >= 1, but got 0"):
        RankingRecall(0)
