"""Verification and few-shot classification by embeddings: are two samples of one class, and which of a few new classes is it?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.utilities import dim_zero_cat

from components.metrics.retrieval import OfEmbeddings
from components.metrics.selective import counted
from components.validation import require, require_choice


class Verification(OfEmbeddings):
    """Base of verification metrics: every pair of samples is a trial, its score the cosine, genuine if both are of one class.

    Memory at the end is samples² / 2. The result is NaN where all trials are of one kind.
    """

    def trials(self) -> tuple[Tensor, Tensor]:
        """Scores and whether they are genuine, of all pairs."""
        embeddings, target = normalize(dim_zero_cat(self.embeddings), dim=1), dim_zero_cat(self.target)
        first, second = torch.triu_indices(len(target), len(target), 1, device=target.device).unbind()
        return (embeddings @ embeddings.T)[first, second], target[first] == target[second]

    def score(self, accepted_wrongly: Tensor, accepted_rightly: Tensor) -> Tensor:
        """From the shares of impostors and of genuine trials that are accepted, both rising from 0 to 1."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        scores, genuine = self.trials()
        if not bool(genuine.any()) or bool(genuine.all()):
            return torch.full((), torch.nan, device=scores.device)
        return self.score(*roc(scores, genuine))


def roc(scores: Tensor, genuine: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of impostors and of genuine trials with a score at or above each threshold, from (0, 0) to (1, 1); ties move together."""
    wrong, right = counted(scores, genuine)
    start = torch.zeros(1, dtype=torch.float64, device=scores.device)
    return torch.cat([start, wrong / wrong[-1]]), torch.cat([start, right / right[-1]])


class VerificationAUC(Verification):
    """Area under the ROC curve of verification: how often a pair of one class has a higher cosine than a pair of two (ties count half).

    Shapes:
        embeddings (N, D); target (N,), class indices.

    Source:
        Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27, 2006.
    """

    def score(self, accepted_wrongly: Tensor, accepted_rightly: Tensor) -> Tensor:
        return torch.trapezoid(accepted_rightly, accepted_wrongly).float()


class EqualErrorRate(Verification):
    """Equal error rate of verification: the error where as large a share of impostors is accepted as of genuine pairs is refused.

    Between two thresholds the curve is a straight line.

    Shapes:
        embeddings (N, D); target (N,), class indices.

    Source:
        As in Wan et al., "Generalized End-to-End Loss for Speaker Verification", ICASSP 2018, arXiv:1710.10467.
    """

    higher_is_better = False

    def score(self, accepted_wrongly: Tensor, accepted_rightly: Tensor) -> Tensor:
        excess = accepted_wrongly - (1 - accepted_rightly)  # from -1 to 1, never falling
        after = int((excess >= 0).nonzero()[0, 0])
        share = -excess[after - 1] / (excess[after] - excess[after - 1])
        return torch.lerp(accepted_wrongly[after - 1], accepted_wrongly[after], share).float()


class AcceptanceAtRate(Verification):
    """TAR@FAR: share of genuine pairs accepted at the threshold that accepts a share ``rate`` of the impostors.

    Args:
        rate: false acceptance rate in (0, 1).

    Shapes:
        embeddings (N, D); target (N,), class indices.

    Raises:
        ValueError: if ``rate`` is outside (0, 1).

    Source:
        As in face verification, e.g. Jung et al., BMVC 2022, arXiv:2203.11593.
    """

    def __init__(self, rate: float = 0.01) -> None:
        super().__init__()
        require(0 < rate < 1, "rate must be in (0, 1)", rate)
        self.rate = rate

    def score(self, accepted_wrongly: Tensor, accepted_rightly: Tensor) -> Tensor:
        return accepted_rightly[accepted_wrongly <= self.rate][-1].float()


class SimilarityGap(Verification):
    """Least cosine within a class minus the greatest between classes: above 0, one threshold separates all pairs.

    Shapes:
        embeddings (N, D); target (N,), class indices.

    Source:
        Jung et al., "Unified Negative Pair Generation toward Well-discriminative Feature Space for Face Recognition", BMVC 2022, arXiv:2203.11593.
    """

    def compute(self) -> Tensor:
        scores, genuine = self.trials()
        if not bool(genuine.any()) or bool(genuine.all()):
            return torch.full((), torch.nan, device=scores.device)
        return scores[genuine].min() - scores[~genuine].max()


class FewShotAccuracy(OfEmbeddings):
    """Accuracy of episodes: a few samples of each of a few classes are shown, others of these classes are assigned to the nearest class mean.

    Samples are put in order of ``index`` before episodes are drawn, so that the result does not depend on batches or ranks.

    Args:
        ways: classes of an episode; fewer where the split has fewer with ``shots + 1`` samples.
        shots: samples of each class that are shown.
        queries: samples of each class that are asked, at most.
        episodes: how many are drawn.
        distance: ``cosine`` (to the mean of the samples at length 1) or ``euclidean`` (to the mean).
        seed: of the draw.

    Shapes:
        embeddings (N, D); target (N,), class indices; index (N,), numbers of the samples. NaN where there are no two classes to tell apart.

    Raises:
        ValueError: if an argument is outside its range.

    Source:
        Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017, arXiv:1703.05175.
    """

    index: list[Tensor]

    def __init__(self, ways: int = 5, shots: int = 5, queries: int = 15, episodes: int = 200, distance: str = "cosine", seed: int = 0) -> None:
        super().__init__()
        require(ways >= 2, "ways must be >= 2", ways)
        for name, value in (("shots", shots), ("queries", queries), ("episodes", episodes)):
            require(value >= 1, f"{name} must be >= 1", value)
        require_choice("distance", distance, ("cosine", "euclidean"))
        self.ways, self.shots, self.queries, self.episodes, self.distance, self.seed = ways, shots, queries, episodes, distance, seed
        self.add_state("index", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, target: Tensor, index: Tensor) -> None:  # type: ignore[override]
        super().update(embeddings, target)
        self.index.append(index)

    def compute(self) -> Tensor:
        order = dim_zero_cat(self.index).argsort(stable=True)
        embeddings, target = dim_zero_cat(self.embeddings)[order].cpu(), dim_zero_cat(self.target)[order].cpu()
        if self.distance == "cosine":
            embeddings = normalize(embeddings, dim=1)
        _, target, counts = target.unique(return_inverse=True, return_counts=True)
        known = (counts > self.shots).nonzero()[:, 0]
        ways = min(self.ways, len(known))
        if ways < 2:
            return torch.full((), torch.nan, device=self.device)
        generator = torch.Generator().manual_seed(self.seed)
        starts = counts.cumsum(0) - counts
        chosen = (known[torch.randperm(len(known), generator=generator)[:ways]] for _ in range(self.episodes))
        return torch.stack([self.episode(embeddings, target, classes, starts, generator) for classes in chosen]).mean().to(self.device)

    def episode(self, embeddings: Tensor, target: Tensor, chosen: Tensor, starts: Tensor, generator: torch.Generator) -> Tensor:
        """Share of right answers among the episode's queries."""
        shuffled = (target + torch.rand(len(target), generator=generator, dtype=torch.float64)).argsort()  # by class, and at random within
        own = target[shuffled]
        place = torch.arange(len(target)) - starts[own]
        number = torch.full((len(starts),), -1).index_put((chosen,), torch.arange(len(chosen)))[own]
        shown, asked = (number >= 0) & (place < self.shots), (number >= 0) & (place >= self.shots) & (place < self.shots + self.queries)
        prototypes = torch.zeros(len(chosen), embeddings.shape[1]).index_add(0, number[shown], embeddings[shuffled[shown]]) / self.shots
        queries = embeddings[shuffled[asked]]
        nearness = queries @ normalize(prototypes, dim=1).T if self.distance == "cosine" else -torch.cdist(queries, prototypes)
        return (nearness.argmax(1) == number[asked]).double().mean().float()


def utilisation(queries: Tensor, embeddings: Tensor) -> Tensor:
    """How far queries are from the nearest of the embeddings, squared, on average: the smaller, the better the training set covers their space.

    Args:
        queries: (Q, D), of samples that training never saw.
        embeddings: (N, D), of the training set, with or without mixed ones.

    Source:
        Venkataramanan et al., "It Takes Two to Tango: Mixup for Deep Metric Learning", ICLR 2022, arXiv:2106.04990, eq. 11.
    """
    nearest = [torch.cdist(part, embeddings, compute_mode="donot_use_mm_for_euclid_dist").amin(1) for part in queries.split(1024)]
    return torch.cat(nearest).square().mean()
