from __future__ import annotations

import pytest
import torch
from torch import Tensor

import components.metrics.retrieval
from components.metrics import MAPAtR, RecallAtK


def data(size: int = 60) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    target = torch.randint(7, (size,), generator=g)
    return torch.randn(size, 4, generator=g) + torch.randn(7, 4, generator=g)[target], target


def ranked(embeddings: Tensor, target: Tensor, distance: str) -> list[list[bool]]:
    """For each query, whether its neighbours, the nearest first, are of its class; sample by sample."""
    rows = []
    for q in range(len(target)):
        others = [i for i in range(len(target)) if i != q]
        if distance == "cosine":
            order = sorted(others, key=lambda i: -float(torch.cosine_similarity(embeddings[q], embeddings[i], dim=0)))
        else:
            order = sorted(others, key=lambda i: float((embeddings[q] - embeddings[i]).norm()))
        rows.append([bool(target[i] == target[q]) for i in order])
    return rows


def brute_force_recall(rows: list[list[bool]], k: int) -> float:
    scores = [any(row[:k]) for row in rows if any(row)]
    return sum(scores) / len(scores)


def brute_force_map(rows: list[list[bool]]) -> float:
    scores = []
    for row in rows:
        r = sum(row)
        if r:
            scores.append(sum(sum(row[: i + 1]) / (i + 1) for i in range(r) if row[i]) / r)
    return sum(scores) / len(scores)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
class TestBruteForce:
    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_recall(self, distance, k):
        embeddings, target = data()
        metric = RecallAtK(k, distance)
        metric.update(embeddings, target)
        assert metric.compute().item() == pytest.approx(brute_force_recall(ranked(embeddings, target, distance), k), abs=1e-6)

    def test_map(self, distance):
        embeddings, target = data()
        metric = MAPAtR(distance)
        metric.update(embeddings, target)
        assert metric.compute().item() == pytest.approx(brute_force_map(ranked(embeddings, target, distance)), abs=1e-6)

    def test_parts_of_queries_change_nothing(self, distance, monkeypatch):
        whole, parted = MAPAtR(distance), MAPAtR(distance)
        for metric in (whole, parted):
            metric.update(*data())
        expected = whole.compute()
        monkeypatch.setattr(components.metrics.retrieval, "QUERIES_AT_ONCE", 7)
        torch.testing.assert_close(parted.compute(), expected)


class TestMAPAtR:
    def test_worked_value(self):
        """R = 2 for three queries: right then wrong, (1/1)/2, twice; wrong then right, (1/2)/2, once."""
        metric = MAPAtR("euclidean")
        metric.update(torch.tensor([[0.0], [1.0], [3.0], [10.0]]), torch.tensor([0, 0, 1, 0]))
        assert metric.compute().item() == pytest.approx((0.5 + 0.5 + 0.25) / 3)

    def test_perfect_and_hopeless(self):
        perfect, hopeless = MAPAtR(), MAPAtR()
        perfect.update(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([0, 0, 1, 1]))
        hopeless.update(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([0, 1, 0, 1]))
        assert perfect.compute() == 1.0
        assert hopeless.compute() == 0.0


class TestQueries:
    def test_a_class_of_one_sample_is_searched_but_does_not_ask(self):
        metric = RecallAtK()
        metric.update(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 5]))
        assert metric.compute() == 1.0

    def test_nobody_to_find(self):
        for metric in (RecallAtK(), MAPAtR()):
            metric.update(torch.randn(3, 2), torch.tensor([0, 1, 2]))
            assert metric.compute().isnan()

    def test_one_sample(self):
        metric = RecallAtK()
        metric.update(torch.randn(1, 2), torch.tensor([0]))
        assert metric.compute().isnan()

    def test_more_neighbours_than_samples(self):
        metric = RecallAtK(k=50)
        metric.update(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]))
        assert metric.compute() == 1.0

    def test_a_query_does_not_find_itself(self):
        metric = RecallAtK()
        metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.01], [0.01, 1.0]]), torch.tensor([0, 0, 1, 1]))
        assert metric.compute() == 0.0

    def test_cosine_does_not_see_lengths(self):
        embeddings, target = data()
        plain, scaled = MAPAtR(), MAPAtR()
        plain.update(embeddings, target)
        scaled.update(embeddings * torch.linspace(0.1, 9, len(target))[:, None], target)
        torch.testing.assert_close(scaled.compute(), plain.compute())


def test_wrong_options():
    with pytest.raises(ValueError, match="k must be >= 1"):
        RecallAtK(0)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        MAPAtR("cosin")
