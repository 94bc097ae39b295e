import pytest
import torch
from torch.nn.functional import normalize

from components.metrics import CrossModalRecall


def recall(direction: str, k: int, first: torch.Tensor, second: torch.Tensor, target: torch.Tensor) -> float:
    metric = CrossModalRecall(k, direction)
    metric.update(first, second, target)
    return float(metric.compute())


class TestCrossModalRecall:
    def test_worked_value(self) -> None:
        """Three pairs in the plane: the second's views point where the third's second view is."""
        first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        second = torch.tensor([[1.0, 0.1], [1.0, 0.9], [0.0, 1.0]])
        target = torch.arange(3)
        assert recall("forward", 1, first, second, target) == pytest.approx(1 / 3)  # 0 finds 0; 1 finds 2; 2 finds 1
        assert recall("backward", 1, first, second, target) == pytest.approx(1 / 3)  # 0 finds 0; 1 finds 2; 2 finds 1
        assert recall("forward", 2, first, second, target) == pytest.approx(2 / 3)
        assert recall("forward", 3, first, second, target) == recall("forward", 9, first, second, target) == 1.0

    def test_both_is_the_mean(self) -> None:
        generator = torch.Generator().manual_seed(0)
        views = [torch.randn(30, 4, generator=generator) for _ in range(2)]
        ways = [recall(way, 3, *views, torch.arange(30)) for way in ("forward", "backward", "both")]
        assert ways[0] != ways[1] and ways[2] == pytest.approx((ways[0] + ways[1]) / 2)

    def test_agrees_with_query_by_query(self) -> None:
        generator = torch.Generator().manual_seed(1)
        first, second = (torch.randn(40, 4, generator=generator) for _ in range(2))
        target = torch.arange(40) // 4
        hits = 0
        for i in range(40):
            cosines = normalize(second) @ normalize(first[i], dim=0)
            hits += bool((target[cosines.argsort(descending=True)[:5]] == target[i]).any())
        assert recall("forward", 5, first, second, target) == pytest.approx(hits / 40)

    def test_any_pair_of_the_identity_is_right(self) -> None:
        first, second = torch.eye(2), torch.eye(2).flip(0)
        assert recall("both", 1, first, second, torch.arange(2)) == 0.0
        assert recall("both", 1, first, second, torch.zeros(2, dtype=torch.long)) == 1.0

    def test_bad_options(self) -> None:
        with pytest.raises(ValueError, match="k must be >= 1"):
            CrossModalRecall(0)
        with pytest.raises(ValueError, match="direction"):
            CrossModalRecall(1, "sideways")
