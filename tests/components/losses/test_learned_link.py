import math

import pytest
import torch
from torch import Tensor

from components.losses import CrossEntropyLoss, LegendreTronLoss
from components.losses.learned_link import ConvexFlow, ConvexNetwork

F64 = torch.float64


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter moved, so that scales and shifts matter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return module.double()


def without_network(loss: LegendreTronLoss) -> LegendreTronLoss:
    """softplus(w1) = 0 and softplus(w0) = 1: the learned map is the identity."""
    for flow in loss.flows:
        flow.w1.data.fill_(-1e9)
        flow.w0.data.fill_(math.log(math.e - 1))
    return loss


class TestConvexNetwork:
    @pytest.mark.parametrize("depth", [1, 2, 4])
    def test_gradient_is_autograds(self, depth: int) -> None:
        network = randomised(ConvexNetwork(3, width=6, depth=depth))
        x = (2 * torch.randn(7, 3, dtype=F64)).requires_grad_()
        (expected,) = torch.autograd.grad(network(x).sum(), x)
        torch.testing.assert_close(network.gradient(x), expected)

    def test_convex_along_random_segments(self) -> None:
        network = randomised(ConvexNetwork(4))
        a, b = (4 * torch.randn(500, 4, dtype=F64) for _ in range(2))
        share = torch.rand(500, 1, dtype=F64)
        between = network(share * a + (1 - share) * b)
        assert (between <= share.squeeze(1) * network(a) + (1 - share.squeeze(1)) * network(b) + 1e-12).all()
        middle, ends = network((a + b) / 2), (network(a) + network(b)) / 2
        assert (middle <= ends + 1e-12).all() and (middle < ends - 1e-3).any()


class TestConvexFlow:
    def test_strongly_monotone(self) -> None:
        flow = randomised(ConvexFlow(4))
        x, y = (3 * torch.randn(500, 4, dtype=F64) for _ in range(2))
        products = ((flow(x) - flow(y)) * (x - y)).sum(1)
        assert (products >= torch.nn.functional.softplus(flow.w0) * (x - y).square().sum(1) - 1e-9).all()

    def test_jacobian_is_symmetric_and_positive_definite(self) -> None:
        flow = randomised(ConvexFlow(4))
        for x in torch.randn(5, 4, dtype=F64):
            jacobian = torch.autograd.functional.jacobian(lambda v: flow(v.unsqueeze(0)).squeeze(0), x)
            torch.testing.assert_close(jacobian, jacobian.mT)
            assert torch.linalg.eigvalsh(jacobian).min() > 0


class TestLegendreTron:
    def test_worked_value_of_the_identity(self) -> None:  # z = (1, -1): softmax of (1, -1, 0)
        loss = without_network(LegendreTronLoss(3).double())
        scores = torch.tensor([[1.0, -1.0, 0.0]], dtype=F64)
        torch.testing.assert_close(loss.class_logits(scores).softmax(1), torch.tensor([[0.665241, 0.090031, 0.244728]], dtype=F64), atol=1e-6, rtol=0)
        assert loss(scores, torch.tensor([0])).item() == pytest.approx(0.407606, abs=1e-6)

    @pytest.mark.parametrize("blocks", [1, 3])
    def test_identity_is_cross_entropy(self, blocks: int) -> None:
        logits, target = torch.randn(16, 5, dtype=F64), torch.randint(5, (16,))
        loss = without_network(LegendreTronLoss(5, blocks=blocks).double())
        torch.testing.assert_close(loss(logits, target), CrossEntropyLoss()(logits, target))

    def test_only_differences_of_scores_count(self) -> None:
        loss, logits = randomised(LegendreTronLoss(5)), torch.randn(16, 5, dtype=F64)
        torch.testing.assert_close(loss.class_logits(logits + 3), loss.class_logits(logits))

    def test_probabilities_lie_inside_the_simplex(self) -> None:
        p = randomised(LegendreTronLoss(5, blocks=2)).class_logits(3 * torch.randn(200, 5, dtype=F64)).softmax(1)
        assert (p > 0).all() and (p < 1).all()
        torch.testing.assert_close(p.sum(1), torch.ones(200, dtype=F64))

    def test_proper(self) -> None:
        """The expected loss of a constant score is least where the probabilities are the classes' own."""
        loss = randomised(LegendreTronLoss(4)).requires_grad_(False)
        q = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.1, 0.1, 0.7]], dtype=F64)
        scores = torch.zeros(2, 4, dtype=F64, requires_grad=True)
        optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def expected() -> Tensor:
            optimizer.zero_grad()
            value = -(q * loss.class_logits(scores).log_softmax(1)).sum()
            value.backward()
            return value

        optimizer.step(expected)
        torch.testing.assert_close(loss.class_logits(scores).softmax(1), q, atol=1e-4, rtol=0)

    def test_parameters_are_trained(self) -> None:
        loss = LegendreTronLoss(5)
        loss(torch.randn(16, 5), torch.randint(5, (16,))).backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in loss.parameters())
        moved = [name for name, parameter in loss.named_parameters() if parameter.grad.abs().sum() > 0]
        assert len(moved) == len(list(loss.parameters()))

    @pytest.mark.parametrize("wrong", [{"num_classes": 1}, {"blocks": 0}, {"width": 3}, {"depth": 0}])
    def test_refusals(self, wrong: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            LegendreTronLoss(**{"num_classes": 3, **wrong})  # type: ignore[arg-type]

    def test_refuses_another_number_of_classes(self) -> None:
        with pytest.raises(ValueError, match=r"logits must have shape \(N, 4\)"):
            LegendreTronLoss(4)(torch.zeros(2, 3), torch.tensor([0, 1]))
