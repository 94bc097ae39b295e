import math

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor
from torch.nn.functional import normalize

from components.metrics import AcceptanceAtRate, EqualErrorRate, FewShotAccuracy, SimilarityGap, VerificationAUC, utilisation


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(40, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target() -> Tensor:
    return torch.arange(40) % 5


def line(*angles: float) -> Tensor:
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


class TestVerification:
    def test_auc_agrees_with_scikit_learn(self, embeddings, target) -> None:
        rounded = embeddings.round()  # equal ones make ties
        metric = VerificationAUC()
        metric.update(rounded, target)
        z = normalize(rounded, dim=1)
        first, second = torch.triu_indices(40, 40, 1)
        scores, genuine = (z @ z.T)[first, second], target[first] == target[second]
        assert metric.compute().item() == pytest.approx(roc_auc_score(genuine, scores), abs=1e-6)

    def test_equal_error_rate_is_where_the_curve_crosses_the_diagonal(self, embeddings, target) -> None:
        shifted = embeddings + torch.nn.functional.one_hot(target % 4, 4)
        metric = EqualErrorRate()
        metric.update(shifted, target)
        z = normalize(shifted, dim=1)
        first, second = torch.triu_indices(40, 40, 1)
        wrong, right, _ = roc_curve(target[first] == target[second], (z @ z.T)[first, second], drop_intermediate=False)
        excess = wrong - (1 - right)
        k = (excess >= 0).argmax()
        expected = wrong[k - 1] + (wrong[k] - wrong[k - 1]) * -excess[k - 1] / (excess[k] - excess[k - 1])
        assert 0.1 < expected < 0.5
        assert metric.compute().item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize(("angles", "rate", "gap"), [((0.0, 0.1, 1.5, 1.6), 0.0, math.cos(0.1) - math.cos(1.4)), ((0.0, 1.5, 0.1, 1.6), 1.0, None)])
    def test_separated_and_swapped_classes(self, angles, rate, gap) -> None:
        eer, least = EqualErrorRate(), SimilarityGap()
        for metric in (eer, least):
            metric.update(line(*angles), torch.tensor([0, 0, 1, 1]))
        if gap is None:  # the two most similar pairs are of different classes, and so is the least similar one
            assert eer.compute() >= 0.5 and least.compute() < 0
        else:
            assert eer.compute() == rate
            assert least.compute().item() == pytest.approx(gap, abs=1e-6)

    def test_acceptance_at_a_rate(self) -> None:
        """Three genuine pairs at cosines of 0.1, 0.2, 0.3 rad, and impostors, the nearest at 0.25: at most none of them may pass."""
        metric = AcceptanceAtRate(0.01)
        metric.update(line(0.0, 0.1, 1.0, 1.2, 2.0, 2.3, 2.55), torch.tensor([0, 0, 1, 1, 2, 2, 3]))
        assert metric.compute().item() == pytest.approx(2 / 3)

    @pytest.mark.parametrize("make", [VerificationAUC, EqualErrorRate, AcceptanceAtRate, SimilarityGap])
    def test_one_kind_of_trials_has_no_value(self, make) -> None:
        for target in (torch.zeros(5, dtype=torch.long), torch.arange(5)):
            metric = make()
            metric.update(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), target)
            assert metric.compute().isnan()

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match=r"rate must be in \(0, 1\)"):
            AcceptanceAtRate(1.0)


def few_shot(embeddings: Tensor, target: Tensor, **settings: object) -> float:
    metric = FewShotAccuracy(**settings)  # type: ignore[arg-type]
    metric.update(embeddings, target, torch.arange(len(target)))
    return metric.compute().item()


class TestFewShot:
    @pytest.mark.parametrize("distance", ["cosine", "euclidean"])
    def test_separated_classes_are_all_right(self, distance, target) -> None:
        embeddings = 10 * torch.nn.functional.one_hot(target).float() + torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
        assert few_shot(embeddings, target, distance=distance) == 1.0

    def test_without_information_it_is_chance(self, target) -> None:
        embeddings = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        for ways in (2, 5):
            assert few_shot(embeddings, torch.arange(400) % 5, ways=ways, episodes=400) == pytest.approx(1 / ways, abs=0.04)

    def test_episode_against_the_means_by_hand(self) -> None:
        """Two classes on a line with one odd sample each; shots = 3 of 4 leave one query, every choice by turns."""
        embeddings = torch.tensor([[0.0], [0.0], [0.0], [10.0], [4.0], [4.0], [4.0], [-6.0]])
        target = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        # the odd ones (1 of 4) are shown 3 times of 4: means 10/3 and 2/3 swap the classes; shown alone they do not
        # class 0's query: odd (1/4): its mean 0, the other's 2/3 or 4 -> wrong. Plain (3/4): own mean 10/3; other's 2/3 (3/4) -> wrong, or 4 (1/4) -> right
        right = 3 / 4 * 1 / 4
        assert few_shot(embeddings, target, ways=2, shots=3, distance="euclidean", episodes=3000) == pytest.approx(right, abs=0.03)

    def test_more_shots_help(self) -> None:
        target = torch.arange(200) % 5
        embeddings = 1.5 * torch.eye(5)[target] + torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
        assert few_shot(embeddings, target, shots=1) + 0.1 < few_shot(embeddings, target, shots=10)

    def test_classes_with_too_few_samples_are_left_out(self) -> None:
        embeddings = torch.cat([torch.eye(2).repeat(6, 1), torch.randn(5, 2, generator=torch.Generator().manual_seed(0))])
        target = torch.tensor([0, 1] * 6 + [2] * 5)
        assert few_shot(embeddings, target, ways=5, shots=5) == 1.0
        assert math.isnan(few_shot(embeddings[:4], target[:4], shots=2))

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match="ways must be >= 2"):
            FewShotAccuracy(ways=1)
        with pytest.raises(ValueError, match="shots must be >= 1"):
            FewShotAccuracy(shots=0)
        with pytest.raises(ValueError, match="distance must be one of cosine, euclidean"):
            FewShotAccuracy(distance="dot")


class TestUtilisation:
    def test_queries_among_the_embeddings_are_at_0(self, embeddings) -> None:
        assert utilisation(embeddings[:7], embeddings) == 0

    def test_worked_value(self) -> None:
        assert utilisation(torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [3.0]])).item() == pytest.approx((1 + 4) / 2)

    def test_more_examples_never_raise_it(self, embeddings) -> None:
        queries, training = embeddings[:15], embeddings[15:]
        generator = torch.Generator().manual_seed(1)
        for _ in range(10):
            pairs = torch.randint(len(training), (2, 30), generator=generator)
            mixed = 0.3 * training[pairs[0]] + 0.7 * training[pairs[1]]
            assert utilisation(queries, torch.cat([training, mixed])) <= utilisation(queries, training)
