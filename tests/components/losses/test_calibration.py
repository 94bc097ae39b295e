import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses import CorrectnessAwareLoss

NARROW = torch.tensor([[0.45, 0.40, 0.15]], dtype=torch.float64).log()  # 1 is right, 0 wins by a little


def logits_of(*probabilities: float) -> Tensor:
    """Two classes, the first with that probability."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([p, 1 - p], 1).log()


def slope(loss: object, logits: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    return float(torch.autograd.grad(loss(logits / t, target), t)[0])  # type: ignore[operator]


class TestCorrectnessAware:
    def test_worked_values(self) -> None:
        plain = CorrectnessAwareLoss(balanced=False, reduction="none")
        torch.testing.assert_close(plain(logits_of(0.9, 0.6), torch.tensor([0, 1])), torch.tensor([0.01, 0.36], dtype=torch.float64))
        # a = 3/4: (3 * 1/4 * 0.01 + 3/4 * 0.36) / (3 * 1/4 + 3/4)
        balanced = CorrectnessAwareLoss()
        assert balanced(logits_of(0.9, 0.9, 0.9, 0.6), torch.tensor([0, 0, 0, 1])).item() == pytest.approx(0.185)

    def test_a_batch_of_one_kind_is_not_weighted(self) -> None:
        for target, value in ((0, 0.01), (1, 0.81)):
            assert CorrectnessAwareLoss()(logits_of(0.9, 0.9), torch.tensor([target, target])).item() == pytest.approx(value)

    def test_a_higher_temperature_helps_the_wrong_and_hurts_the_right(self) -> None:
        loss = CorrectnessAwareLoss()
        logits = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for i in range(50):
            right = logits[i : i + 1].argmax(1)
            assert slope(loss, logits[i : i + 1], right) > 0 > slope(loss, logits[i : i + 1], (right + 1) % 4)

    def test_narrow_misclassification(self) -> None:
        target = torch.tensor([1])
        assert slope(F.cross_entropy, NARROW, target) == pytest.approx(0.094122, abs=1e-6), "cross-entropy wants to be surer of the wrong class"
        assert slope(CorrectnessAwareLoss(), NARROW, target) == pytest.approx(-0.085822, abs=1e-6)
        assert slope(F.cross_entropy, NARROW, target, 0.51832) == pytest.approx(0.0, abs=1e-4)
        assert CorrectnessAwareLoss()(NARROW / 1e6, target).item() == pytest.approx(1 / 9, abs=1e-5), "as low as it gets"

    def test_all_right_wants_the_lowest_temperature(self) -> None:
        loss = CorrectnessAwareLoss(balanced=False)
        logits = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        values = [loss(logits / t, logits.argmax(1)).item() for t in (0.1, 0.2, 0.5, 1.0, 10.0)]
        assert values == sorted(values)

    def test_ignored_samples_do_not_count_in_the_balance(self) -> None:
        logits, target = logits_of(0.9, 0.9, 0.9, 0.6, 0.7), torch.tensor([0, 0, 0, 1, -100])
        assert CorrectnessAwareLoss()(logits, target).item() == pytest.approx(0.185)

    def test_wrong_option_is_named(self) -> None:
        with pytest.raises(ValueError, match="balanced"):
            CorrectnessAwareLoss(balanced="yes")  # type: ignore[arg-type]
