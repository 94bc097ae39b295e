from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from components.metrics import MASE, MeanAbsoluteError, R2Score, RootMeanSquaredError


def data(*shape: int, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    target = torch.randn(*shape, generator=g) * torch.linspace(1, 3, shape[-1]) + offset
    return target + 0.5 * torch.randn(*shape, generator=g), target


CASES = [(MeanAbsoluteError, mean_absolute_error), (RootMeanSquaredError, lambda y, p: root_mean_squared_error(y.ravel(), p.ravel())), (R2Score, r2_score)]


@pytest.mark.parametrize(("metric_class", "reference"), CASES)
class TestAgainstScikitLearn:
    @pytest.mark.parametrize("targets", [1, 3])
    def test_value(self, metric_class, reference, targets):
        preds, target = data(100, targets)
        metric = metric_class()
        metric.update(preds, target)
        assert metric.compute().item() == pytest.approx(reference(target.numpy(), preds.numpy()), rel=1e-5)

    def test_missing_targets_count_for_nothing(self, metric_class, reference):
        preds, target = data(100, 1)
        missing = torch.rand(100, generator=torch.Generator().manual_seed(1)) < 0.3
        metric = metric_class()
        metric.update(preds, target.masked_fill(missing[:, None], torch.nan))
        assert metric.compute().item() == pytest.approx(reference(target[~missing].numpy(), preds[~missing].numpy()), rel=1e-5)

    def test_a_batch_with_no_target_at_all_changes_nothing(self, metric_class, reference):
        preds, target = data(40, 2)
        metric = metric_class()
        metric.update(preds, target)
        metric.update(preds, torch.full_like(target, torch.nan))
        assert metric.compute().item() == pytest.approx(reference(target.numpy(), preds.numpy()), rel=1e-5)

    def test_shapes_that_would_broadcast_are_refused(self, metric_class, reference):
        with pytest.raises(ValueError, match=r"same shape, but got \(4, 1\) and \(1, 4\)"):
            metric_class().update(torch.zeros(4, 1), torch.zeros(1, 4))


def metric_of(metric_class, preds: torch.Tensor, target: torch.Tensor) -> float:
    metric = metric_class()
    metric.update(preds, target)
    return metric.compute().item()


class TestR2:
    def test_targets_far_from_zero(self):
        """Year numbers: their squares are 4 million, their variance 1; sums of squares in float32 would lose it."""
        preds, target = data(4000, 1, offset=2000.0)
        metric = R2Score()
        for p, t in zip(preds.split(37), target.split(37), strict=True):
            metric.update(p, t)
        assert metric.compute().item() == pytest.approx(r2_score(target.double().numpy(), preds.double().numpy()), abs=1e-5)

    def test_constant_targets_are_scikit_learns(self):
        for preds in (torch.full((5, 1), 2.0), torch.arange(5.0)[:, None]):
            target = torch.full((5, 1), 2.0)
            assert metric_of(R2Score, preds, target) == r2_score(target.numpy(), preds.numpy())

    def test_steps_of_a_forecast_are_samples(self):
        preds, target = data(20, 6, 3)
        assert metric_of(R2Score, preds, target) == pytest.approx(r2_score(target.reshape(-1, 3).numpy(), preds.reshape(-1, 3).numpy()), rel=1e-5)


class TestMASE:
    @pytest.mark.parametrize("seasonality", [1, 4])
    def test_is_the_papers_formula(self, seasonality):
        g = torch.Generator().manual_seed(0)
        preds, target, history = (torch.randn(5, steps, 2, generator=g) for steps in (3, 3, 12))
        metric = MASE(seasonality)
        metric.update(preds, target, history)
        scores = []
        for n in range(5):
            for c in range(2):
                x = history[n, :, c].numpy()
                scale = np.mean([abs(x[s] - x[s - seasonality]) for s in range(seasonality, 12)])
                scores += [abs(float(preds[n, t, c] - target[n, t, c])) / scale for t in range(3)]
        assert metric.compute().item() == pytest.approx(np.mean(scores), rel=1e-5)

    def test_units_do_not_matter(self):
        g = torch.Generator().manual_seed(0)
        preds, target, history = (torch.randn(5, steps, 2, generator=g) for steps in (3, 3, 12))
        plain, scaled = MASE(), MASE()
        plain.update(preds, target, history)
        scaled.update(100 * preds + 7, 100 * target + 7, 100 * history + 7)
        assert scaled.compute().item() == pytest.approx(plain.compute().item(), rel=1e-4)

    def test_a_constant_history_is_left_out(self):
        history = torch.stack([torch.arange(5.0), torch.ones(5)])[..., None]
        metric = MASE()
        metric.update(torch.full((2, 1, 1), 7.0), torch.full((2, 1, 1), 5.0), history)
        assert metric.compute().item() == pytest.approx(2.0)

    def test_missing_values(self):
        history = torch.tensor([0.0, 1.0, torch.nan, 3.0, 5.0]).view(1, 5, 1)
        target = torch.tensor([6.0, torch.nan]).view(1, 2, 1)
        metric = MASE()
        metric.update(torch.tensor([9.0, 9.0]).view(1, 2, 1), target, history)
        assert metric.compute().item() == pytest.approx(3.0 / 1.5)

    def test_a_season_longer_than_the_history(self):
        with pytest.raises(ValueError, match="seasonality must be below the 5 steps"):
            MASE(5).update(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 5, 1))
        with pytest.raises(ValueError, match="seasonality must be >= 1"):
            MASE(0)
