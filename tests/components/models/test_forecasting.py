from __future__ import annotations

import pytest
import torch

from components.models import DLinear, PatchTransformer
from components.models.forecasting import ChannelLinear, InstanceNorm, moving_average


def patch_transformer(**options: object) -> PatchTransformer:
    torch.manual_seed(0)
    facts = {"in_channels": 3, "history_length": 24, "horizon": 6}
    return PatchTransformer(**{**facts, "width": 16, "num_heads": 2, "dropout": 0.0, **options})


class TestMovingAverage:
    @pytest.mark.parametrize("kernel_size", [1, 3, 25])
    def test_of_a_constant_is_the_constant(self, kernel_size):
        series = torch.full((2, 3, 30), 4.5)
        torch.testing.assert_close(moving_average(series, kernel_size), series)

    def test_of_a_line_is_the_line_away_from_the_edges(self):
        series = torch.arange(30.0).expand(1, 1, 30)
        average = moving_average(series, 5)
        torch.testing.assert_close(average[..., 2:-2], series[..., 2:-2])
        # at the edge the first value is repeated: (0 + 0 + 0 + 1 + 2) / 5
        assert average[0, 0, 0].item() == pytest.approx(0.6)
        assert average[0, 0, -1].item() == pytest.approx((27 + 28 + 29 + 29 + 29) / 5)

    def test_is_the_sum_written_out(self):
        series = torch.randn(2, 3, 20)
        average = moving_average(series, 7)
        for t in range(20):
            window = series[..., [min(max(s, 0), 19) for s in range(t - 3, t + 4)]]
            torch.testing.assert_close(average[..., t], window.mean(-1))

    def test_wider_than_the_series(self):
        assert moving_average(torch.randn(1, 1, 4), 25).shape == (1, 1, 4)


class TestDLinear:
    def test_is_the_papers_formula(self):
        torch.manual_seed(0)
        model = DLinear(2, 12, 4, kernel_size=5)
        inputs = torch.randn(3, 12, 2)
        trend = moving_average(inputs.transpose(1, 2), 5)
        seasonal = inputs.transpose(1, 2) - trend
        expected = seasonal @ model.seasonal.weight[0].T + model.seasonal.bias[0] + trend @ model.trend.weight[0].T + model.trend.bias[0]
        torch.testing.assert_close(model(inputs).output, expected.transpose(1, 2))

    def test_parts_add_up(self):
        model, series = DLinear(2, 12, 4), torch.randn(3, 2, 12)
        seasonal, trend = model.decompose(series)
        torch.testing.assert_close(seasonal + trend, series)

    @pytest.mark.parametrize("individual", [False, True])
    def test_channels_do_not_mix(self, individual):
        model = DLinear(3, 12, 4, individual=individual)
        inputs = torch.randn(2, 12, 3)
        changed = inputs.clone()
        changed[..., 1] += 1
        before, after = model(inputs).output, model(changed).output
        torch.testing.assert_close(before[..., [0, 2]], after[..., [0, 2]])
        assert not torch.allclose(before[..., 1], after[..., 1])

    def test_individual_has_weights_of_its_own_for_each_channel(self):
        shared, individual = DLinear(3, 12, 4), DLinear(3, 12, 4, individual=True)
        assert sum(p.numel() for p in individual.parameters()) == 3 * sum(p.numel() for p in shared.parameters())
        with torch.no_grad():
            for part in ("seasonal", "trend"):
                getattr(individual, part).weight.copy_(getattr(shared, part).weight.expand(3, -1, -1))
                getattr(individual, part).bias.copy_(getattr(shared, part).bias.expand(3, -1))
        inputs = torch.randn(2, 12, 3)
        torch.testing.assert_close(individual(inputs).output, shared(inputs).output)

    def test_a_channels_outputs_stand_side_by_side(self):
        model = DLinear(2, 12, 4, num_outputs=6)
        inputs = torch.randn(3, 12, 2)
        changed = inputs.clone()
        changed[..., 1] += 1
        same = torch.isclose(model(inputs).output, model(changed).output, atol=1e-6).all((0, 1))
        assert same.tolist() == [True, True, True, False, False, False]

    def test_outputs_must_be_a_multiple_of_channels(self):
        with pytest.raises(ValueError, match="num_outputs must be a multiple of in_channels = 2"):
            DLinear(2, 12, 4, num_outputs=3)

    def test_layers_start_like_torchs(self):
        torch.manual_seed(0)
        layer = ChannelLinear(1, 100, 50)
        assert layer.weight.abs().max() <= 0.1 and layer.weight.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)


class TestPatches:
    def test_worked_example(self):
        model = patch_transformer(in_channels=1, history_length=10, patch_length=4, stride=3)
        patches = model.patches(torch.arange(10.0))
        assert patches.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [9, 9, 9, 9]]

    @pytest.mark.parametrize(("length", "patch", "stride"), [(336, 16, 8), (24, 8, 4), (24, 24, 5), (25, 7, 3), (9, 2, 7)])
    def test_there_are_as_many_as_positions(self, length, patch, stride):
        model = patch_transformer(history_length=length, patch_length=patch, stride=stride)
        assert model.patches(torch.randn(2, 3, length)).shape == (2, 3, len(model.positions), patch)
        assert model(torch.randn(2, length, 3)).output.shape == (2, 6, 3)

    def test_the_papers_count(self):
        assert len(patch_transformer(history_length=336, patch_length=16, stride=8).positions) == 42


class TestPatchTransformer:
    @pytest.mark.parametrize("revin", [False, True])
    def test_channels_do_not_mix(self, revin):
        model = patch_transformer(revin=revin).eval()
        inputs = torch.randn(2, 24, 3)
        changed = inputs.clone()
        changed[..., 1] = torch.randn(2, 24)
        before, after = model(inputs).output, model(changed).output
        torch.testing.assert_close(before[..., [0, 2]], after[..., [0, 2]])
        assert not torch.allclose(before[..., 1], after[..., 1])

    def test_channels_share_weights(self):
        model = patch_transformer().eval()
        inputs = torch.randn(2, 24, 3)
        torch.testing.assert_close(model(inputs[..., [2, 0, 1]]).output, model(inputs).output[..., [2, 0, 1]])

    def test_every_step_of_the_history_counts(self):
        model = patch_transformer(revin=False).eval()
        inputs = torch.randn(1, 24, 3, requires_grad=True)
        gradient = torch.autograd.grad(model(inputs).output.square().sum(), inputs)[0]
        assert (gradient != 0).all()

    @pytest.mark.parametrize("affine", [False, True])
    def test_revin_follows_shift_and_scale(self, affine):
        model = patch_transformer(revin_affine=affine).eval()
        if affine:
            with torch.no_grad():
                model.normalise.gain.copy_(torch.tensor([[0.5], [2.0], [-1.5]]))
                model.normalise.shift.copy_(torch.tensor([[0.3], [-1.0], [0.0]]))
        inputs = torch.randn(4, 24, 3)
        moved = model(7.0 * inputs + 30.0).output
        torch.testing.assert_close(moved, 7.0 * model(inputs).output + 30.0, atol=2e-3, rtol=1e-4)
        torch.testing.assert_close(model(7.0 * inputs + 30.0).features, model(inputs).features, atol=1e-3, rtol=1e-3)

    def test_without_revin_it_does_not(self):
        model = patch_transformer(revin=False).eval()
        inputs = torch.randn(4, 24, 3)
        assert not torch.allclose(model(inputs + 30.0).output, model(inputs).output + 30.0, atol=0.5)

    def test_quantiles_follow_shift_and_scale(self):
        model = patch_transformer(num_outputs=9, head="quantile").eval()
        inputs = torch.randn(4, 24, 3)
        torch.testing.assert_close(model(7.0 * inputs + 30.0).output, 7.0 * model(inputs).output + 30.0, atol=2e-3, rtol=1e-4)

    @pytest.mark.parametrize("affine", [False, True])
    def test_log_variances_follow_the_scale_alone(self, affine):
        model = patch_transformer(num_outputs=6, head="gaussian", revin_affine=affine).eval()
        inputs = torch.randn(4, 24, 3)
        before, after = model(inputs).output.unflatten(2, (3, 2)), model(7.0 * inputs + 30.0).output.unflatten(2, (3, 2))
        torch.testing.assert_close(after[..., 0], 7.0 * before[..., 0] + 30.0, atol=2e-3, rtol=1e-4)
        torch.testing.assert_close(after[..., 1], before[..., 1] + 2 * torch.tensor(7.0).log(), atol=1e-3, rtol=1e-4)

    def test_a_gaussian_head_has_two_outputs(self):
        with pytest.raises(ValueError, match="gaussian"):
            patch_transformer(num_outputs=9, head="gaussian")
        with pytest.raises(ValueError, match="head must be one of point, gaussian, quantile"):
            patch_transformer(head="student")

    def test_a_constant_history_is_forecast_as_it_is(self):
        """Its deviation is 0: the normalised series is 0 and the forecast stays within √eps of the value."""
        model = patch_transformer().eval()
        output = model(torch.full((2, 24, 3), 5.0)).output
        torch.testing.assert_close(output, torch.full_like(output, 5.0), atol=0.02, rtol=0)


@pytest.mark.parametrize("gain", [2.0, -0.5, 0.0])
def test_instance_norm_round_trip(gain):
    norm = InstanceNorm(2, affine=True, gaussian=False)
    with torch.no_grad():
        norm.gain.fill_(gain)
        norm.shift.fill_(0.7)
    series = 3 * torch.randn(4, 2, 50) + 11
    mean, deviation = norm.statistics(series)
    back = norm.undo(norm(series, mean, deviation)[..., None], mean, deviation)[..., 0]
    assert back.isfinite().all()
    if gain:
        torch.testing.assert_close(back, series, atol=1e-4, rtol=1e-4)
