import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses import CrossEntropyLoss, SphericalOutput, SphericalSoftmaxLoss, StablemaxLoss, TaylorSoftmaxLoss, ZLoss

F64 = torch.float64
SPHERICAL = {"z_loss": ZLoss(0.5, 3.0), "taylor": TaylorSoftmaxLoss(), "spherical": SphericalSoftmaxLoss(0.01)}


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


class TestZLoss:
    @pytest.mark.parametrize(("a", "b", "value"), [(1.0, 0.0, 0.25761), (1.0, 1.0, 0.58708), (0.1, 10.0, 12.25228)])
    def test_worked_values(self, a: float, b: float, value: float) -> None:  # (3 - 2) / sqrt(2/3) = 1.22474 standard deviations
        loss = ZLoss(a, b)(torch.tensor([[1.0, 2.0, 3.0]], dtype=F64), torch.tensor([2]))
        assert loss.item() == pytest.approx(value, abs=1e-5)
        assert loss.item() == pytest.approx(math.log1p(math.exp(a * (b - math.sqrt(1.5)))) / a)

    def test_shift_and_scale_change_nothing(self, logits: Tensor, target: Tensor) -> None:
        loss = ZLoss(0.7, 1.0, reduction="none")
        torch.testing.assert_close(loss(3.5 * logits - 20, target), loss(logits, target))

    def test_gradient_is_orthogonal_to_shifts_and_to_the_scores(self, logits: Tensor, target: Tensor) -> None:
        of_logits = gradient(ZLoss()(logits, target), logits)
        centred = logits.detach() - logits.detach().mean(1, keepdim=True)
        for direction in (torch.ones_like(centred), centred):
            torch.testing.assert_close((of_logits * direction).sum(1), torch.zeros(16, dtype=F64), atol=1e-12, rtol=0)

    def test_gradient_by_its_formula(self, logits: Tensor, target: Tensor) -> None:
        a, b = 0.5, 1.5
        o = logits.detach()
        sigma = o.std(1, correction=0, keepdim=True)
        z = (o - o.mean(1, keepdim=True)) / sigma
        of_target = z.gather(1, target.unsqueeze(1))
        expected = -torch.sigmoid(a * (b - of_target)) * (F.one_hot(target, 5) - 1 / 5 - of_target * z / 5) / sigma
        torch.testing.assert_close(gradient(ZLoss(a, b, reduction="sum")(logits, target), logits), expected)

    def test_largest_standing_out(self) -> None:  # one score of five apart from the others: sqrt(C - 1) = 2 standard deviations
        loss = ZLoss(a=1.0, b=2.0)(torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]], dtype=F64), torch.tensor([2]))
        assert loss.item() == pytest.approx(math.log(2))

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="a must be > 0, but got 0"):
            ZLoss(a=0)
        with pytest.raises(ValueError, match="logits must have two classes or more"):
            ZLoss()(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))


class TestSoftmaxOfOtherFunctions:
    def test_taylor_worked_value(self) -> None:  # f = 1, 2.5, 5 at 0, 1, 2; f = 0.5 at -1, its minimum
        scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]], dtype=F64)
        torch.testing.assert_close(TaylorSoftmaxLoss().class_logits(scores).exp(), torch.tensor([[1.0, 2.5, 5.0, 0.5]], dtype=F64))
        assert TaylorSoftmaxLoss()(scores, torch.tensor([2])).item() == pytest.approx(math.log(9 / 5))

    def test_taylor_of_high_order_nears_softmax(self, logits: Tensor, target: Tensor) -> None:
        small = logits / 8
        torch.testing.assert_close(TaylorSoftmaxLoss(6)(small, target), CrossEntropyLoss()(small, target), atol=1e-5, rtol=0)

    def test_spherical_worked_value(self) -> None:  # squares 1, 4, 0 and 0.5 each: 4.5 of 6.5
        loss = SphericalSoftmaxLoss(0.5)(torch.tensor([[1.0, -2.0, 0.0]], dtype=F64), torch.tensor([1]))
        assert loss.item() == pytest.approx(math.log(6.5 / 4.5))

    def test_stablemax_worked_values(self) -> None:
        loss = StablemaxLoss()
        assert loss(torch.zeros(1, 2), torch.tensor([0])).item() == pytest.approx(math.log(2))
        assert loss(torch.tensor([[3.0, -1.0]]), torch.tensor([0])).item() == pytest.approx(0.117783, abs=1e-6)  # s = 4 and 1/2: 8/9
        torch.testing.assert_close(loss.class_logits(torch.tensor([[3.0, -1.0]])).softmax(1), torch.tensor([[8 / 9, 1 / 9]]))
        assert loss.class_logits(torch.tensor([[-1.0]], dtype=F64)).exp().item() == pytest.approx(0.5)

    @pytest.mark.parametrize("at", [0.0, 1e-9, -1e-9])
    def test_stablemax_has_slope_one_at_zero(self, at: float) -> None:
        x = torch.tensor([[at]], dtype=F64, requires_grad=True)
        assert gradient(StablemaxLoss().class_logits(x).exp().sum(), x).item() == pytest.approx(1.0, abs=1e-8)

    def test_softmax_collapses_in_float32_and_stablemax_does_not(self) -> None:
        """Beyond a lead of 16.64 the loss and the target's gradient are exactly 0; stablemax's fades with the square of the lead."""
        for lead in (16.7, 30.0, 1000.0):
            z = torch.tensor([[lead, 0.0]], requires_grad=True)
            value = CrossEntropyLoss()(z, torch.tensor([0]))
            assert value == 0 and gradient(value, z)[0, 0] == 0
            stable = gradient(StablemaxLoss()(z, torch.tensor([0])), z)[0, 0].item()
            assert stable == pytest.approx(-1 / ((lead + 1) * (lead + 2)), rel=1e-2)
        z = torch.tensor([[16.5, 0.0]], requires_grad=True)
        assert gradient(CrossEntropyLoss()(z, torch.tensor([0])), z)[0, 0] != 0

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="order must be 2, 4 or 6, but got 3"):
            TaylorSoftmaxLoss(3)
        with pytest.raises(ValueError, match="epsilon must be > 0"):
            SphericalSoftmaxLoss(0.0)


class TestSphericalOutput:
    DIM, CLASSES, BATCH = 8, 40, 6

    def layer(self, name: str, **options: object) -> tuple[SphericalOutput, Tensor]:
        weight = torch.randn(self.CLASSES, self.DIM, dtype=F64, generator=torch.Generator().manual_seed(3)) / 2
        layer = SphericalOutput(self.DIM, self.CLASSES, SPHERICAL[name], **options)  # type: ignore[arg-type]
        layer.set_weight(weight)
        return layer, weight.clone().requires_grad_()

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        hidden = torch.randn(self.BATCH, self.DIM, dtype=F64, generator=generator).requires_grad_()
        target = torch.randint(self.CLASSES, (self.BATCH,), generator=generator)
        return hidden, torch.where(torch.arange(self.BATCH) == 1, target[0], target)  # one class twice in a batch

    @pytest.mark.parametrize("name", SPHERICAL)
    def test_loss_and_gradient_equal_the_dense_ones(self, name: str) -> None:
        layer, weight = self.layer(name)
        hidden, target = self.batch(torch.Generator().manual_seed(0))
        dense = SPHERICAL[name](hidden @ weight.mT, target)
        torch.testing.assert_close(layer(hidden, target), dense, rtol=1e-9, atol=1e-9)
        expected = gradient(dense, hidden)
        torch.testing.assert_close(gradient(layer(hidden, target), hidden), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(layer.step(hidden.detach(), target, lr=0.0)[1], expected, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("name", SPHERICAL)
    def test_many_steps_equal_dense_gradient_descent(self, name: str) -> None:
        layer, weight = self.layer(name, check_every=50)
        generator = torch.Generator().manual_seed(1)
        for _ in range(300):
            hidden, target = self.batch(generator)
            loss = SPHERICAL[name](hidden @ weight.mT, target)
            of_hidden, of_weight = torch.autograd.grad(loss, (hidden, weight))
            ours, ours_of_hidden = layer.step(hidden.detach(), target, lr=0.2)
            torch.testing.assert_close(ours, loss.detach(), rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(ours_of_hidden, of_hidden, rtol=1e-6, atol=1e-6)
            weight = (weight - 0.2 * of_weight).detach().requires_grad_()
        torch.testing.assert_close(layer.weight, weight.detach(), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(layer.gram, (weight.mT @ weight).detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(layer.inverse @ layer.mixing, torch.eye(self.DIM, dtype=F64), rtol=0, atol=1e-9)

    def test_an_ill_conditioned_factor_is_renormalised(self) -> None:
        """A large learning rate shrinks a few directions for long; bounds that are often left make no difference to the weight."""
        layer, weight = self.layer("spherical", check_every=10, bounds=(0.9, 1.1))
        loose, _ = self.layer("spherical", check_every=10_000)
        generator, moved = torch.Generator().manual_seed(2), 0
        for _ in range(100):
            hidden, target = self.batch(generator)
            hidden = (hidden * torch.tensor([5.0, 3.0] + [0.1] * (self.DIM - 2), dtype=F64)).detach()
            of_weight = gradient(SPHERICAL["spherical"](hidden @ weight.mT, target), weight)
            layer.step(hidden, target, lr=1.0)
            loose.step(hidden, target, lr=1.0)
            moved += layer.renormalise()
            weight = (weight - 1.0 * of_weight).detach().requires_grad_()
        assert moved > 5
        values = torch.linalg.svdvals(layer.mixing)
        assert values.min() >= 0.9 and values.max() <= 1.1
        torch.testing.assert_close(layer.weight, weight.detach(), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(loose.weight, weight.detach(), rtol=1e-5, atol=1e-5)

    def test_only_rows_of_the_targets_are_touched(self) -> None:
        layer, _ = self.layer("z_loss")
        before = layer.factor.clone()
        hidden, target = self.batch(torch.Generator().manual_seed(0))
        layer.step(hidden.detach(), target, lr=0.5)
        changed = (layer.factor != before).any(1)
        assert set(changed.nonzero().squeeze(1).tolist()) == set(target.tolist())
        assert (layer.weight != before).any(1).all()  # the weight itself has changed everywhere

    def test_ignored_samples(self) -> None:
        layer, _ = self.layer("z_loss")
        other, _ = self.layer("z_loss")
        hidden, target = self.batch(torch.Generator().manual_seed(0))
        target[2] = -100
        kept = target != -100
        loss, of_hidden = layer.step(hidden.detach(), target, lr=0.5)
        alone, _ = other.step(hidden.detach()[kept], target[kept], lr=0.5)
        torch.testing.assert_close(loss, alone)
        assert (of_hidden[2] == 0).all()
        torch.testing.assert_close(layer.weight, other.weight)

    def test_logits_and_state(self) -> None:
        layer, _ = self.layer("z_loss")
        hidden, target = self.batch(torch.Generator().manual_seed(0))
        layer.step(hidden.detach(), target, lr=0.5)
        torch.testing.assert_close(layer.logits(hidden), hidden @ layer.weight.mT)
        fresh, _ = self.layer("z_loss")
        fresh.load_state_dict(layer.state_dict())
        torch.testing.assert_close(fresh(hidden, target), layer(hidden, target), rtol=0, atol=0)

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="loss must be a spherical loss"):
            SphericalOutput(4, 5, CrossEntropyLoss())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="order must be 2"):
            SphericalOutput(4, 5, TaylorSoftmaxLoss(4))(torch.zeros(2, 4), torch.tensor([0, 1]))
        layer, _ = self.layer("z_loss")
        with pytest.raises(ValueError, match="hidden must have shape"):
            layer.step(torch.zeros(3, 7, dtype=F64), torch.zeros(3, dtype=torch.long), lr=0.1)
        with pytest.raises(ValueError, match="target must hold classes in"):
            layer.step(torch.zeros(1, 8, dtype=F64), torch.tensor([40]), lr=0.1)
