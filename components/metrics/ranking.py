"""Ranking metrics: how far up a query's wanted candidates stand, one area under the curve for all queries, and the welfare of auctions.

``preds`` (N, L) are scores of candidates, ``target`` (N, L) their relevances, NaN for a candidate that is left out. torchmetrics' own take one
long list with the query's number beside each score and loop over queries; these take the matrix, and agree with them. A query without a wanted
candidate is left out of the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from components.metrics.base import Quotient
from components.validation import require


class RankingMetric(Quotient):
    """Base: a mean over queries. A subclass gives :meth:`score` from the relevances in the order of the scores."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()

    def score(self, ranked: Tensor, wanted: Tensor) -> Tensor:
        """(N,) from the relevances (N, L) of the candidates, the best first, 0 where left out, and ``wanted`` (N,), how many there are."""
        raise NotImplementedError

    def update(self, preds: Tensor, target: Tensor) -> None:
        check_pair(preds, target)
        left_out = target.isnan()
        relevance = target.float().masked_fill(left_out, 0.0)
        order = preds.float().masked_fill(left_out, -torch.inf).argsort(dim=1, descending=True, stable=True)
        wanted = (relevance > 0).sum(1)
        scores = self.score(relevance.gather(1, order), wanted)
        self.add(torch.where(wanted > 0, scores, torch.zeros_like(scores)).sum(), (wanted > 0).sum())


class RankingAtK(RankingMetric):
    """Base of those that look at the first ``k`` candidates."""

    def __init__(self, k: int = 20) -> None:
        super().__init__()
        require(k >= 1, "k must be >= 1", k)
        self.k = k


class RankingRecall(RankingAtK):
    r"""Recall@k: share of a query's wanted candidates among the first ``k``; the mean over queries.

    Args:
        k: candidates looked at.

    Shapes:
        preds (N, L), scores; target (N, L), wanted where > 0, NaN where left out.

    Raises:
        ValueError: if ``k < 1``, or shapes disagree.

    Source:
        Manning, Raghavan, Schütze, "Introduction to Information Retrieval", 2008, ch. 8.
    """

    def score(self, ranked: Tensor, wanted: Tensor) -> Tensor:
        return (ranked[:, : self.k] > 0).sum(1) / wanted.clamp(min=1)


class RankingPrecision(RankingAtK):
    r"""Precision@k: share of the first ``k`` candidates that are wanted; the mean over queries. Of extreme classification at k = 1, 3, 5.

    Args:
        k: candidates looked at.

    Shapes:
        preds (N, L), scores; target (N, L), wanted where > 0, NaN where left out.

    Raises:
        ValueError: if ``k < 1``, or shapes disagree.

    Source:
        Manning, Raghavan, Schütze, "Introduction to Information Retrieval", 2008, ch. 8.
    """

    def score(self, ranked: Tensor, wanted: Tensor) -> Tensor:
        return (ranked[:, : self.k] > 0).sum(1) / self.k


class RankingNDCG(RankingAtK):
    r"""Normalised discounted cumulative gain of the first ``k`` candidates; the mean over queries.

    .. math:: \mathrm{NDCG@k} = \frac{\mathrm{DCG}}{\mathrm{ideal\ DCG}}, \qquad \mathrm{DCG} = \sum_{r=1}^{k} \frac{y_r}{\log_2 (1 + r)}

    with :math:`y_r` the relevance at rank *r*: for relevances 0 and 1 also what :math:`2^y - 1` gives.

    Args:
        k: candidates looked at.

    Shapes:
        preds (N, L), scores; target (N, L), relevances >= 0, NaN where left out.

    Raises:
        ValueError: if ``k < 1``, or shapes disagree.

    Source:
        Järvelin, Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques", TOIS 20(4), 2002.
    """

    def score(self, ranked: Tensor, wanted: Tensor) -> Tensor:
        k = min(self.k, ranked.shape[1])
        discount = (torch.arange(k, device=ranked.device) + 2.0).log2().reciprocal()
        ideal = (ranked.topk(k, dim=1).values * discount).sum(1)
        return (ranked[:, :k] * discount).sum(1) / torch.where(ideal > 0, ideal, 1.0)


class RankingMRR(RankingMetric):
    r"""Mean reciprocal rank: 1 / the rank of the first wanted candidate; the mean over queries.

    Shapes:
        preds (N, L), scores; target (N, L), wanted where > 0, NaN where left out.

    Raises:
        ValueError: if shapes disagree.

    Source:
        Voorhees, "The TREC-8 Question Answering Track Report", 1999.
    """

    def score(self, ranked: Tensor, wanted: Tensor) -> Tensor:
        return 1.0 / ((ranked > 0).to(torch.uint8).argmax(1) + 1.0)


class RankingAUC(Metric):
    r"""Area under the ROC curve of one threshold for all queries: a wanted candidate of any query beats an unwanted one of any query.

    .. math:: \mathrm{AUC} = P(s^+ > s^-) + \tfrac12 P(s^+ = s^-)

    The area over the curve is 1 - AUC. Scores may lie anywhere (a sigmoid would make large ones equal). Memory: all scores of a split.

    Shapes:
        preds (N, L), scores; target (N, L), wanted where > 0, NaN where left out.

    Raises:
        ValueError: if shapes disagree.

    Source:
        Hanley, McNeil, "The Meaning and Use of the Area under a Receiver Operating Characteristic Curve", Radiology 143, 1982.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    wanted: list[Tensor]
    unwanted: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("wanted", [], dist_reduce_fx="cat")
        self.add_state("unwanted", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        check_pair(preds, target)
        self.wanted.append(preds[target > 0].float())
        self.unwanted.append(preds[target == 0].float())

    def compute(self) -> Tensor:
        wanted, unwanted = dim_zero_cat(self.wanted), dim_zero_cat(self.unwanted).sort().values
        if not len(wanted) or not len(unwanted):
            return torch.full((), torch.nan, device=wanted.device)
        below, not_above = (torch.searchsorted(unwanted, wanted, right=right).double().mean() for right in (False, True))
        return (0.5 * (below + not_above) / len(unwanted)).float()


class BinaryLogLoss(Quotient):
    """Binary cross-entropy, from logits, the mean over all of them: of click rates, beside whatever loss they were trained with.

    Shapes:
        preds and target of one shape; target in [0, 1].

    Source:
        Good, "Rational Decisions", JRSS B 14(1), 1952.
    """

    higher_is_better = False
    is_differentiable = True

    def __init__(self) -> None:
        super().__init__()

    def update(self, preds: Tensor, target: Tensor) -> None:
        check_pair(preds, target)
        values = torch.nn.functional.binary_cross_entropy_with_logits(preds.float(), target.float(), reduction="none")
        self.add(values.sum(), values.numel())


class Welfare(Quotient):
    r"""Welfare of auctions that the largest bid x predicted click rate wins, as a share of the best possible.

    .. math:: \frac{\sum_a b_{a w(a)}\, p_{a w(a)}}{\sum_a \max_i b_{ai}\, p_{ai}}, \qquad w(a) = \arg\max_i b_{ai}\, \mathrm{sigmoid}(z_{ai})

    with *p* the true click rates where they are known, else the clicks.

    Shapes:
        preds (N, n), logits; bids (N, n); click_rate (N, n).

    Raises:
        ValueError: if shapes disagree.

    Source:
        Lyu et al., "Pairwise Ranking Losses of Click-Through Rates Prediction for Welfare Maximization in Ad Auctions", ICML 2023, arXiv:2306.01799
        (the share of the best is our normalisation).
    """

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__(counted=False)

    def update(self, preds: Tensor, bids: Tensor, click_rate: Tensor) -> None:
        check_pair(preds, bids)
        check_pair(preds, click_rate)
        worth = bids.float() * click_rate.float()
        # in the log domain, where small click rates stay apart
        winner = (bids.float().log() + torch.nn.functional.logsigmoid(preds.float())).argmax(1, keepdim=True)
        self.add(worth.gather(1, winner).sum(), worth.amax(1).sum())


def check_pair(preds: Tensor, other: Tensor) -> None:
    """Refuse a pair that would broadcast."""
    if preds.shape != other.shape or preds.ndim != 2:
        raise ValueError(f"preds and what goes with them must have one shape (N, L), but got {tuple(preds.shape)} and {tuple(other.shape)}")
