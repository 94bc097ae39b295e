import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses import CrossEntropyLoss, KDLoss


@pytest.fixture
def quantities() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (3 * torch.randn(12, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    return {"logits": logits.requires_grad_(), "teacher_logits": teacher, "target": torch.randint(4, (12,), generator=generator)}


def test_worked_value() -> None:
    """T = 2, teacher 2 ln 3 against 0: (3/4, 1/4); student even: KL = 3/4 ln(3/2) + 1/4 ln(1/2), times 4; cross-entropy ln 2."""
    loss = KDLoss(alpha=0.25, temperature=2.0)
    value = loss(torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]]), torch.tensor([1]))
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert value.item() == pytest.approx(0.25 * 4 * kl + 0.75 * math.log(2))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_agrees_with_torchs_kl_div(quantities: dict[str, Tensor], temperature: float) -> None:
    student, teacher = (F.log_softmax(quantities[name] / temperature, 1) for name in ("logits", "teacher_logits"))
    expected = 0.7 * temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    expected = expected + 0.3 * F.cross_entropy(quantities["logits"], quantities["target"])
    ours = KDLoss(0.7, temperature)(**quantities)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, quantities["logits"]) for value in (ours, expected)))


def test_alpha_zero_is_cross_entropy(quantities: dict[str, Tensor]) -> None:
    torch.testing.assert_close(KDLoss(alpha=0.0)(**quantities), CrossEntropyLoss()(quantities["logits"], quantities["target"]))


def test_a_student_like_its_teacher_costs_nothing(quantities: dict[str, Tensor]) -> None:
    value = KDLoss(alpha=1.0)(quantities["logits"], quantities["logits"].detach() + 5, quantities["target"])
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, quantities["logits"])[0], torch.zeros(12, 4, dtype=torch.float64))


def test_at_high_temperature_it_matches_scores(quantities: dict[str, Tensor]) -> None:
    """Sec. 2.1 of the paper: for large T the gradient tends to (z - t) / C per sample, scores centred, with the T² of this loss."""
    centred = {name: quantities[name] - quantities[name].mean(1, keepdim=True) for name in ("logits", "teacher_logits")}
    (gradient,) = torch.autograd.grad(KDLoss(alpha=1.0, temperature=1e4, reduction="sum")(**quantities), quantities["logits"])
    torch.testing.assert_close(gradient, (centred["logits"] - centred["teacher_logits"]) / 4, rtol=1e-2, atol=1e-3)


def test_no_gradient_reaches_the_teacher(quantities: dict[str, Tensor]) -> None:
    quantities["teacher_logits"].requires_grad_()
    KDLoss()(**quantities).backward()
    assert quantities["teacher_logits"].grad is None


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], but got 2"):
        KDLoss(alpha=2)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        KDLoss(temperature=0)
    with pytest.raises(ValueError, match="teacher_logits must have the shape of logits"):
        KDLoss()(torch.zeros(3, 4), torch.zeros(3, 5), torch.zeros(3, dtype=torch.long))
