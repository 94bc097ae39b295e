import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional import regression as tm

from components.losses import (
    HuberLoss,
    L1Loss,
    LogCoshLoss,
    LogErrorLoss,
    MeanBiasLoss,
    MSELoss,
    PercentageErrorLoss,
    QuantileLoss,
    RelativeErrorLoss,
)

RAE = {"power": 1}
RMSE = {"root": True, "scale": "none"}
RRMSE = {"root": True, "scale": "prediction", "total": True}

TABLE = {
    "mae": L1Loss(),
    "mse": MSELoss(),
    "mbe": MeanBiasLoss(),
    "rae": RelativeErrorLoss(**RAE),
    "rse": RelativeErrorLoss(),
    "mape": PercentageErrorLoss(),
    "rmse": RelativeErrorLoss(**RMSE),
    "msle": LogErrorLoss(),
    "rmsle": LogErrorLoss(root=True),
    "nrmse": RelativeErrorLoss(root=True),
    "rrmse": RelativeErrorLoss(**RRMSE),
    "huber": HuberLoss(),
    "log_cosh": LogCoshLoss(),
    "quantile": QuantileLoss([0.5]),
}
"""The survey's fourteen."""


def value(loss: nn.Module, prediction: Tensor, target: Tensor) -> Tensor:
    return loss(prediction.unsqueeze(-1) if isinstance(loss, QuantileLoss) else prediction, target)


@pytest.fixture
def prediction() -> Tensor:
    return 3 + torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).abs()


@pytest.fixture
def target() -> Tensor:
    return 3 + torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).abs()


class TestTable:
    @pytest.mark.parametrize(
        ("name", "expected"),
        {
            "mae": 2 / 3,
            "mse": 4 / 3,
            "mbe": -2 / 3,
            "rmse": 1.154701,
            "rae": 1,
            "rse": 2,
            "mape": 22.2222,
            "huber": 0.5,
            "log_cosh": 0.441668,
            "quantile": 1 / 3,
            "nrmse": math.sqrt(2),
            "rrmse": math.sqrt(4 / 3 / 30),  # predictions 1, 2, 5: squares sum to 30
            "msle": math.log(6 / 4) ** 2 / 3,
            "rmsle": math.log(6 / 4) / math.sqrt(3),
        }.items(),
    )
    def test_worked_values(self, name: str, expected: float) -> None:
        got = value(TABLE[name], torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        assert got.item() == pytest.approx(expected, rel=1e-5)

    def test_log_cosh_in_closed_form(self) -> None:
        assert TABLE["log_cosh"](torch.tensor([3.0]), torch.tensor([1.0])).item() == pytest.approx(2 + math.log1p(math.exp(-4)) - math.log(2), abs=1e-6)
        assert TABLE["log_cosh"](torch.tensor([1.0]), torch.tensor([0.0])).item() == pytest.approx(0.433781, abs=1e-6)

    @pytest.mark.parametrize("name", TABLE)
    def test_a_perfect_prediction_costs_nothing(self, name: str, target: Tensor) -> None:
        prediction = target.clone().requires_grad_()
        loss = value(TABLE[name], prediction, target)
        assert loss == 0
        (gradient,) = torch.autograd.grad(loss, prediction)
        assert torch.isfinite(gradient).all(), "finite at an error of 0, the root's too"

    @pytest.mark.parametrize("name", TABLE)
    @pytest.mark.parametrize("error", [1e4, 1e-20])
    def test_gradients_are_finite_at_huge_and_tiny_errors(self, name: str, error: float) -> None:
        prediction = torch.tensor([1.0 + error, 2.0, 3.0 - error], requires_grad=True)
        (gradient,) = torch.autograd.grad(value(TABLE[name], prediction, torch.tensor([1.0, 2.0, 3.0])), prediction)
        assert torch.isfinite(gradient).all()

    @pytest.mark.parametrize("name", ["rae", "rse", "mape", "nrmse"])
    def test_no_unit(self, name: str, prediction: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(TABLE[name](7 * prediction, 7 * target), TABLE[name](prediction, target))

    @pytest.mark.parametrize("name", TABLE)
    def test_a_constant_target_never_gives_nan(self, name: str) -> None:
        prediction = torch.tensor([1.0, 2.0], requires_grad=True)
        loss = value(TABLE[name], prediction, torch.ones(2))
        assert torch.isfinite(loss) and torch.isfinite(torch.autograd.grad(loss, prediction)[0]).all()

    def test_the_best_constant(self) -> None:
        """MAE: the median, MSE: the mean, pinball: the quantile; log-cosh, like Huber, lies between the first two."""
        sample = torch.randn(501, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
        constants = sample.sort().values

        def best(loss: nn.Module) -> float:
            return float(constants[torch.stack([value(loss, c.expand(501), sample) for c in constants]).argmin()])

        median, mean = float(sample.median()), float(sample.mean())
        assert best(TABLE["mae"]) == median
        assert best(TABLE["mse"]) == pytest.approx(mean, abs=0.02)
        assert best(QuantileLoss([0.8])) == pytest.approx(float(sample.quantile(0.8)), abs=0.02)
        assert median < best(TABLE["log_cosh"]) < mean
        assert best(TABLE["log_cosh"]) == pytest.approx(best(TABLE["huber"]), abs=0.1)

    def test_pinball_at_the_median_is_half_the_absolute_error(self, prediction: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(value(TABLE["quantile"], prediction, target), TABLE["mae"](prediction, target) / 2)


class TestAgreesWithTorchmetrics:
    def test_percentages(self, prediction: Tensor, target: Tensor) -> None:
        flat = prediction.flatten(), target.flatten()
        torch.testing.assert_close(PercentageErrorLoss(factor=1.0)(prediction, target), tm.mean_absolute_percentage_error(*flat))
        torch.testing.assert_close(PercentageErrorLoss(symmetric=True, factor=1.0)(prediction, target), tm.symmetric_mean_absolute_percentage_error(*flat))
        torch.testing.assert_close(RelativeErrorLoss(power=1, scale="target")(prediction, target), tm.weighted_mean_absolute_percentage_error(*flat))

    def test_logarithms(self, prediction: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(LogErrorLoss()(prediction, target), tm.mean_squared_log_error(prediction, target))

    def test_relative_squared_error(self, prediction: Tensor, target: Tensor) -> None:
        ours = RelativeErrorLoss(over="column")(prediction, target)
        torch.testing.assert_close(ours, tm.relative_squared_error(prediction, target))
        torch.testing.assert_close(1 - ours, tm.r2_score(prediction, target))

    @pytest.mark.parametrize(("scale", "theirs"), [("deviation", "std"), ("range", "range"), ("mean", "mean")])
    def test_normalised_root(self, prediction: Tensor, target: Tensor, scale: str, theirs: str) -> None:
        ours = RelativeErrorLoss(root=True, scale=scale)(prediction, target)
        expected = tm.normalized_root_mean_squared_error(prediction.flatten(), target.flatten(), normalization=theirs)
        torch.testing.assert_close(ours, expected.to(ours.dtype), rtol=1e-6, atol=1e-6)

    def test_mean_of_targets(self, target: Tensor) -> None:
        mean = target.mean().expand_as(target)
        assert RelativeErrorLoss(**RAE)(mean, target).item() == pytest.approx(1)
        assert RelativeErrorLoss()(mean, target).item() == pytest.approx(1)


class TestSets:
    def test_column_and_sample(self, prediction: Tensor, target: Tensor) -> None:
        loss = RelativeErrorLoss(root=True)
        by_column = torch.stack([loss(prediction[:, i], target[:, i]) for i in range(3)])
        by_sample = torch.stack([loss(p, t) for p, t in zip(prediction, target, strict=True)])
        torch.testing.assert_close(RelativeErrorLoss(root=True, over="column")(prediction, target), by_column.mean())
        torch.testing.assert_close(RelativeErrorLoss(root=True, over="sample")(prediction, target), by_sample.mean())

    def test_columns_of_forecasts_span_samples_and_steps(self, prediction: Tensor, target: Tensor) -> None:
        loss = RelativeErrorLoss(over="column")
        torch.testing.assert_close(loss(prediction.reshape(4, 4, 3), target.reshape(4, 4, 3)), loss(prediction, target))

    @pytest.mark.parametrize("scale", ["none", "deviation", "mean", "range", "iqr", "prediction", "target"])
    @pytest.mark.parametrize("over", ["batch", "column"])
    def test_missing_values_are_not_in_the_yardstick(self, prediction: Tensor, target: Tensor, scale: str, over: str) -> None:
        loss = RelativeErrorLoss(root=True, scale=scale, over=over)
        holes = target.clone()
        holes[10:] = math.nan
        torch.testing.assert_close(loss(prediction, holes), loss(prediction[:10], target[:10]))

    def test_shares_of_a_root(self, prediction: Tensor, target: Tensor) -> None:
        shares = RelativeErrorLoss(**RMSE, reduction="none")(prediction, target)
        error = (prediction - target).square()
        torch.testing.assert_close(shares, error / error.mean().sqrt())

    def test_quartiles(self) -> None:
        target = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
        assert RelativeErrorLoss(power=1, scale="iqr")(target + 1, target).item() == pytest.approx(0.5)

    def test_a_sum_shrinks_with_the_batch(self, prediction: Tensor, target: Tensor) -> None:
        summed, averaged = RelativeErrorLoss(**RRMSE)(prediction, target), RelativeErrorLoss(root=True, scale="prediction")(prediction, target)
        torch.testing.assert_close(summed, averaged / math.sqrt(48))

    def test_a_single_value_has_no_spread(self) -> None:
        with pytest.raises(ValueError, match="prediction must have 2 dimensions or more for over=sample"):
            RelativeErrorLoss(over="sample")(torch.zeros(4), torch.zeros(4))


class TestLogarithm:
    def test_a_negative_prediction_comes_back(self) -> None:
        for negative, comes_back in (("mirror", True), ("clamp", False)):
            prediction = torch.tensor([-0.5], requires_grad=True)
            (gradient,) = torch.autograd.grad(LogErrorLoss(negative=negative)(prediction, torch.tensor([1.0])), prediction)
            assert (gradient.item() < 0) == comes_back

    def test_derivative_at_0_is_the_formulas(self) -> None:  # d/dp (log 2 - log(1 + p))² = -2 log 2 at p = 0
        prediction = torch.zeros(1, requires_grad=True)
        (gradient,) = torch.autograd.grad(LogErrorLoss()(prediction, torch.ones(1)), prediction)
        assert gradient.item() == pytest.approx(-2 * math.log(2))


class TestBias:
    def test_kinds(self, prediction: Tensor, target: Tensor) -> None:
        bias = (target - prediction).mean()
        torch.testing.assert_close(MeanBiasLoss()(prediction, target), bias)
        torch.testing.assert_close(MeanBiasLoss(kind="absolute")(prediction, target), bias.abs())
        torch.testing.assert_close(MeanBiasLoss(kind="squared")(prediction, target), bias.square())

    def test_the_squared_one_removes_a_bias(self, target: Tensor) -> None:
        shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        loss = MeanBiasLoss(kind="squared", over="column")
        optimizer = torch.optim.SGD([shift], lr=0.5)
        for _ in range(50):
            optimizer.zero_grad()
            loss(shift.expand_as(target), target).backward()
            optimizer.step()
        torch.testing.assert_close(shift.detach(), target.mean(0), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: RelativeErrorLoss(power=3), "power must be 1 or 2"),
        (lambda: RelativeErrorLoss(power=1, root=True), "root needs power=2"),
        (lambda: RelativeErrorLoss(scale="deviations"), "did you mean 'deviation'"),
        (lambda: RelativeErrorLoss(over="row"), "over must be one of"),
        (lambda: RelativeErrorLoss(eps=0.0), "eps must be > 0"),
        (lambda: LogErrorLoss(negative="drop"), "negative must be one of"),
        (lambda: PercentageErrorLoss(eps=0.0), "eps must be > 0"),
        (lambda: PercentageErrorLoss(factor=-1.0), "factor must be > 0"),
        (lambda: MeanBiasLoss(kind="cubed"), "kind must be one of"),
    ],
)
def test_wrong_options_are_named(build, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build()
