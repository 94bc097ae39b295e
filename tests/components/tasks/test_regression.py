import pytest
import torch
from tiny_tasks import build
from torch import nn

from components.losses import GaussianNLLLoss, QuantileLoss
from components.objective import Objective
from components.tasks import ForecastingTask, RegressionTask


def fed(output: torch.Tensor) -> nn.Module:
    """A model with a given output."""

    class Fed(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return output

    return Fed()


BATCH = {"inputs": torch.zeros(2, 1), "index": torch.arange(2), "target": torch.zeros(2, 2)}


class TestHeads:
    def test_outputs_of_a_target_lie_side_by_side(self):
        task = RegressionTask(fed(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])), num_targets=2, head="gaussian")
        quantities = task.quantities(BATCH)
        assert quantities["prediction"].tolist() == [[1, 3], [5, 7]] and quantities["log_variance"].tolist() == [[2, 4], [6, 8]]
        torch.testing.assert_close(task.predict(BATCH)["standard_deviation"], torch.exp(torch.tensor([[1.0, 2.0], [3.0, 4.0]])))

    def test_the_point_prediction_is_the_quantile_nearest_to_the_median(self):
        task, _ = build("regression", loss=QuantileLoss(levels=[0.1, 0.45, 0.8, 0.9]))
        task.model = fed(torch.arange(16.0).reshape(2, 8))
        quantities = task.quantities(BATCH)
        assert quantities["quantiles"].tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10, 11], [12, 13, 14, 15]]]
        assert quantities["prediction"].tolist() == [[1, 5], [9, 13]]
        columns = task.predict(BATCH)
        assert list(columns) == ["prediction", "quantile_0.1", "quantile_0.45", "quantile_0.8", "quantile_0.9"]
        assert columns["quantile_0.8"].tolist() == [[2, 6], [10, 14]]

    def test_offers_follow_the_head(self):
        heads = {"point": set(), "gaussian": {"log_variance"}, "quantile": {"quantiles"}}
        for head, more in heads.items():
            task = RegressionTask(nn.Linear(1, 1), num_targets=1, head=head)
            assert task.offered & {"log_variance", "quantiles", "prediction"} == more | {"prediction"}

    def test_the_head_is_the_losss_when_not_given(self):
        task, _ = build("regression", loss=GaussianNLLLoss())
        assert RegressionTask(task.model, Objective(task.objective.loss), num_targets=2).head == "gaussian"

    def test_facts_multiply(self):
        data = {"target_kind": "real", "num_targets": 2, "horizon": 3, "history_length": 8}
        assert RegressionTask.facts(data, 5) == {"num_outputs": 10}
        assert ForecastingTask.facts(data, 2) == {"num_outputs": 4, "horizon": 3, "history_length": 8}


class TestForecasting:
    def test_history_is_the_input(self):
        task, data = build("forecasting")
        batch = next(iter(data.train_dataloader()))
        assert torch.equal(task.quantities(batch)["history"], batch["inputs"])

    def test_each_step_and_series_has_its_outputs(self):
        task = ForecastingTask(fed(torch.arange(24.0).reshape(1, 3, 8)), num_targets=4, horizon=3, head="gaussian")
        named = task.named(task.model(None))
        assert named["prediction"][0].tolist() == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18, 20, 22]]


class TestErrors:
    def test_classes_are_no_values(self):
        with pytest.raises(ValueError, match=r"target_kind must be real .* but got 'multiclass'"):
            RegressionTask.facts({"target_kind": "multiclass", "num_classes": 3})

    def test_unknown_head(self):
        with pytest.raises(ValueError, match="head must be one of point, gaussian, quantile, but got 'gauss'; did you mean 'gaussian'"):
            RegressionTask(nn.Linear(1, 1), num_targets=1, head="gauss")  # type: ignore[arg-type]

    @pytest.mark.parametrize(("shape", "head"), [((2, 3), "point"), ((2, 4), "point"), ((2, 3), "quantile")])
    def test_an_output_of_another_size(self, shape: tuple[int, ...], head: str):
        task = RegressionTask(fed(torch.zeros(shape)), num_targets=2, head=head)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"head={head} for 2 targets does not go with a model output of shape"):
            task.quantities(BATCH)

    def test_an_output_without_a_horizon(self):
        task = ForecastingTask(fed(torch.zeros(2, 2)), num_targets=2, horizon=3)
        with pytest.raises(ValueError, match=r"must put out \(N, horizon=3, outputs\), but got \(2, 2\)"):
            task.named(torch.zeros(2, 2))
        task = RegressionTask(fed(torch.zeros(2, 3, 2)), num_targets=2)
        with pytest.raises(ValueError, match=r"puts out \(2, 3, 2\) for targets \(2, 2\)"):
            task.quantities(BATCH)
