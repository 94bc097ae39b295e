import pytest
import torch
from torch import Tensor

from components.losses import DirectionalLoss

MADL = DirectionalLoss("exact")


@pytest.fixture
def realised() -> Tensor:
    return 0.02 * torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def predicted() -> Tensor:
    return torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


class TestExact:
    @pytest.mark.parametrize(
        ("predicted", "realised", "expected"),
        [([0.5, 0.1, -0.2], [0.02, -0.01, 0.03], 0.0066667), ([0.5, 0.3], [0.01, -0.02], 0.005)],
    )
    def test_worked_values(self, predicted: list[float], realised: list[float], expected: float) -> None:
        for sign in ("exact", "straight_through"):
            assert DirectionalLoss(sign)(torch.tensor(predicted), torch.tensor(realised)).item() == pytest.approx(expected, abs=1e-6)

    def test_bounds(self, realised: Tensor) -> None:
        torch.testing.assert_close(MADL(realised, realised), -realised.abs().mean())
        torch.testing.assert_close(MADL(-realised, realised), realised.abs().mean())

    def test_only_the_sign_counts(self, predicted: Tensor, realised: Tensor) -> None:
        torch.testing.assert_close(MADL(1e-3 * predicted, realised), MADL(predicted, realised))
        torch.testing.assert_close(MADL(-predicted, realised), -MADL(predicted, realised))

    def test_no_move_earns_nothing(self) -> None:
        loss = DirectionalLoss("exact", exponent=0.0, reduction="none")
        torch.testing.assert_close(loss(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 3.0, 3.0])), torch.tensor([0.0, -1.0, 0.0]))

    def test_is_minus_the_strategys_mean_return(self, predicted: Tensor, realised: Tensor) -> None:
        earned = [float(r) if p > 0 else -float(r) for p, r in zip(predicted, realised, strict=True)]
        assert MADL(predicted, realised).item() == pytest.approx(-sum(earned) / len(earned))

    def test_has_no_gradient(self, predicted: Tensor, realised: Tensor) -> None:
        (gradient,) = torch.autograd.grad(MADL(predicted, realised), predicted)
        assert (gradient == 0).all()


class TestSmooth:
    @pytest.mark.parametrize("sign", ["tanh", "tanh_product"])
    @pytest.mark.parametrize("relative", [False, True])
    def test_steep_is_exact(self, predicted: Tensor, realised: Tensor, sign: str, relative: bool) -> None:
        steep = DirectionalLoss(sign, steepness=1e12, relative=relative)
        torch.testing.assert_close(steep(predicted, realised), MADL(predicted, realised))

    @pytest.mark.parametrize("relative", [False, True])
    def test_steep_gmadl_is_half_of_madl(self, predicted: Tensor, realised: Tensor, relative: bool) -> None:
        steep = DirectionalLoss("sigmoid_product", steepness=1e8, relative=relative)
        torch.testing.assert_close(2 * steep(predicted, realised), MADL(predicted, realised), atol=1e-6, rtol=1e-4)

    def test_gmadl_is_the_authors_formula(self, predicted: Tensor, realised: Tensor) -> None:
        ours = DirectionalLoss("sigmoid_product", steepness=1000.0, exponent=2.0, relative=False)(predicted, realised)
        expected = -((torch.sigmoid(1000 * realised * predicted) - 0.5) * realised.abs() ** 2).mean()
        torch.testing.assert_close(ours, expected)

    @pytest.mark.parametrize("sign", ["straight_through", "tanh", "tanh_product", "sigmoid_product"])
    def test_gradient_pushes_towards_the_realised_sign(self, predicted: Tensor, realised: Tensor, sign: str) -> None:
        loss = DirectionalLoss(sign, steepness=2.0, relative=False)
        (gradient,) = torch.autograd.grad(loss(predicted, realised), predicted)
        assert torch.equal(-gradient.sign(), realised.sign())

    def test_straight_through_has_the_gradient_of_tanh(self, predicted: Tensor, realised: Tensor) -> None:
        one, other = (torch.autograd.grad(DirectionalLoss(sign, relative=False)(predicted, realised), predicted)[0] for sign in ("straight_through", "tanh"))
        torch.testing.assert_close(one, other)

    def test_relative_knows_no_unit(self, predicted: Tensor, realised: Tensor) -> None:
        loss = DirectionalLoss()
        torch.testing.assert_close(loss(predicted, 100 * realised) / 100, loss(predicted, realised))
        torch.testing.assert_close(loss(100 * predicted, realised), loss(predicted, realised))
        (gradient,) = torch.autograd.grad(loss(predicted, realised), predicted)
        assert (gradient * predicted).sum().item() == pytest.approx(0, abs=1e-12), "no gradient along a rescaling of all predictions"

    def test_all_predictions_equal(self, realised: Tensor) -> None:
        predicted = torch.full_like(realised, 0.3).requires_grad_()
        value = DirectionalLoss()(predicted, realised)
        assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value, predicted)[0]).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [({"sign": "soft"}, "sign"), ({"steepness": 0.0}, "steepness must be > 0"), ({"exponent": -1.0}, "exponent must be"), ({"eps": 0.0}, "eps must be > 0")],
)
def test_wrong_options_are_named(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DirectionalLoss(**options)
