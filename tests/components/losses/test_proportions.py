import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot, softplus

from components.losses import CrossEntropyLoss, EasyLLPLoss, FocalLoss, L1Loss, ProportionMatchingLoss

D = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def bags(target: Tensor, classes: int, size: int) -> dict[str, Tensor]:
    """Neighbours in bags of ``size``."""
    shares = one_hot(target, classes).to(D).reshape(-1, size, classes).mean(1).repeat_interleave(size, 0)
    return {"proportions": shares, "bag": torch.arange(len(target)) // size, "bag_size": torch.full((len(target),), size)}


class TestEasyLLP:
    def test_bags_of_one_are_ordinary_supervision(self) -> None:
        logits, target = normal(12, 3), torch.arange(12) % 3
        b = bags(target, 3, 1)
        for base in (CrossEntropyLoss(), FocalLoss(gamma=2.0)):
            base.reduction = "mean"
            expected = base(logits, target)
            torch.testing.assert_close(EasyLLPLoss([5, 3, 4], base)(logits, b["proportions"], b["bag_size"]), expected)

    def test_a_bag_like_all_bags_has_the_marginal_as_label(self) -> None:
        logits, prior = normal(4, 3), torch.tensor([0.5, 0.3, 0.2], dtype=D)
        value = EasyLLPLoss([50, 30, 20]).double()(logits, prior.expand(4, 3), torch.full((4,), 9))
        torch.testing.assert_close(value, cross_entropy(logits, prior.expand(4, 3)), atol=1e-6, rtol=1e-6)

    def test_worked_value(self) -> None:
        """k = 4, alpha = 0.5, p = 0.25: the label is 1.25, so 1.25 l(1) - 0.25 l(0)."""
        score = torch.tensor([[0.7]], dtype=D)
        value = EasyLLPLoss([75, 25])(score, torch.tensor([[0.5, 0.5]], dtype=D), torch.tensor([4]))
        one, zero = (binary_cross_entropy_with_logits(score, torch.full_like(score, y)) for y in (1.0, 0.0))
        torch.testing.assert_close(value, 1.25 * one - 0.25 * zero)
        torch.testing.assert_close(value, softplus(score[0, 0]) - 1.25 * score[0, 0])

    def test_its_label_is_unbiased(self) -> None:
        """k = 4, the sample's own probability 0.9, the others' and the marginal 0.3: the sum over all label vectors is 0.9."""
        loss = EasyLLPLoss([70, 30]).double()
        loss.prior = torch.tensor([0.7, 0.3], dtype=D)
        score = torch.tensor([[-0.4]], dtype=D)
        expected = torch.zeros((), dtype=D)
        for labels in itertools.product((0, 1), repeat=4):
            chance = 1.0
            for y, p in zip(labels, (0.9, 0.3, 0.3, 0.3), strict=True):
                chance *= p if y else 1 - p
            share = sum(labels) / 4
            expected = expected + chance * loss(score, torch.tensor([[1 - share, share]], dtype=D), torch.tensor([4]))
        torch.testing.assert_close(expected, softplus(score[0, 0]) - 0.9 * score[0, 0], atol=1e-12, rtol=1e-12)

    @pytest.mark.parametrize("size", [2, 8])
    def test_its_mean_over_many_bags_is_that_under_the_true_labels(self, size: int) -> None:
        """Within 4 standard errors; the scores are anything, here good ones."""
        generator = torch.Generator().manual_seed(2)
        count = 40_000
        score = torch.randn(count, 1, generator=generator, dtype=D)
        target = (torch.rand(count, generator=generator, dtype=D) < (2 * score[:, 0]).sigmoid()).long()
        b = bags(target, 2, size)
        loss = EasyLLPLoss(torch.bincount(target).tolist(), reduction="none").double()
        values = loss(score, b["proportions"], b["bag_size"])
        truth = binary_cross_entropy_with_logits(score[:, 0], target.to(D))
        of_bags = values.reshape(-1, size).mean(1)
        assert abs(float(values.mean() - truth)) < 4 * float(of_bags.std()) / len(of_bags) ** 0.5
        soft = size * (b["proportions"][:, 1] - loss.prior[1]) + loss.prior[1]
        torch.testing.assert_close(values, softplus(score[:, 0]) - soft * score[:, 0], atol=1e-5, rtol=1e-5)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="class_counts must be a list of counts"):
            EasyLLPLoss([0, 0])
        with pytest.raises(ValueError, match="base must be a loss with a reduction"):
            EasyLLPLoss([1, 1], torch.nn.Linear(2, 2))
        with pytest.raises(ValueError, match="class_counts must have one count for each of the 3 classes, but got 2"):
            EasyLLPLoss([1, 1])(normal(4, 3), torch.full((4, 3), 1 / 3, dtype=D), torch.ones(4))
        with pytest.raises(ValueError, match=r"logits must have shape \(N, C\)"):
            EasyLLPLoss([1, 1])(normal(4), torch.ones(4, 2), torch.ones(4))
        assert hasattr(L1Loss(), "reduction")


class TestProportionMatching:
    def test_agrees_with_bag_after_bag(self) -> None:
        logits, target = normal(12, 3).requires_grad_(), torch.arange(12) % 3
        order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
        b = {name: value[order] for name, value in bags(target, 3, 4).items()}
        ours = ProportionMatchingLoss(reduction="none")(logits, b["proportions"], b["bag"])
        expected = torch.zeros(12, dtype=D)
        for number in range(3):
            members = b["bag"] == number
            mean = logits[members].softmax(1).mean(0)
            expected[members] = -(b["proportions"][members][0] * mean.log()).sum()
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), logits)[0] for v in (ours, expected)))

    def test_bags_of_one_are_cross_entropy(self) -> None:
        logits, target = normal(12, 3), torch.arange(12) % 3
        b = bags(target, 3, 1)
        torch.testing.assert_close(ProportionMatchingLoss()(logits, b["proportions"], b["bag"]), cross_entropy(logits, target))

    def test_one_score_is_two_logits(self) -> None:
        score = normal(8, 1)
        b = bags(torch.arange(8) % 2, 2, 4)
        two = torch.cat([torch.zeros_like(score), score], 1)
        torch.testing.assert_close(*(ProportionMatchingLoss()(z, b["proportions"], b["bag"]) for z in (score, two)))

    def test_nothing_to_learn_at_the_right_proportions(self) -> None:
        logits = torch.zeros(8, 2, dtype=D, requires_grad=True)
        b = bags(torch.arange(8) % 2, 2, 4)
        ProportionMatchingLoss()(logits, b["proportions"], b["bag"]).backward()
        assert logits.grad.abs().max() < 1e-12  # type: ignore[union-attr]

    def test_a_bag_that_is_sure_and_wrong_stays_finite(self) -> None:
        """Probabilities below float32's smallest, beside another bag's near 1."""
        logits = torch.tensor([[0.0, 500.0], [0.0, 400.0], [500.0, 0.0]], requires_grad=True)
        value = ProportionMatchingLoss(reduction="none")(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0, 1]))
        torch.testing.assert_close(value, torch.tensor([400.0, 400.0, 0.0]) + torch.tensor([1.0, 1.0, 0.0]) * torch.tensor(2.0).log())
        value.sum().backward()
        assert logits.grad.isfinite().all()  # type: ignore[union-attr]

    def test_bad_input(self) -> None:
        b = bags(torch.arange(8) % 2, 2, 4)
        with pytest.raises(ValueError, match="bag must hold one whole number a sample"):
            ProportionMatchingLoss()(normal(8, 2), b["proportions"], b["bag"].double())
        with pytest.raises(ValueError, match="proportions must be real values"):
            ProportionMatchingLoss()(normal(8, 2), b["proportions"].long(), b["bag"])
