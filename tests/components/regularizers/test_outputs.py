import math

import pytest
import torch

from components.regularizers import ActivationL2, ConfidencePenalty


class TestConfidencePenalty:
    @pytest.mark.parametrize("classes", [2, 3, 100])
    def test_uniform_predictions_have_the_smallest_value(self, classes):
        assert ConfidencePenalty()(torch.full((4, classes), 7.0)).item() == pytest.approx(-math.log(classes))

    def test_worked_value(self):  # p = (3/4, 1/4): H = 0.75 ln(4/3) + 0.25 ln 4
        logits = torch.tensor([[math.log(3.0), 0.0]])
        entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
        assert ConfidencePenalty()(logits).item() == pytest.approx(-entropy)
        assert ConfidencePenalty(threshold=0.6)(logits).item() == pytest.approx(0.6 - entropy)
        assert ConfidencePenalty(threshold=0.5)(logits).item() == 0.0

    def test_minimising_it_makes_predictions_less_certain(self):
        logits = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
        for _ in range(200):
            (gradient,) = torch.autograd.grad(ConfidencePenalty()(logits), logits)
            logits = (logits - gradient).detach().requires_grad_()
        torch.testing.assert_close(logits.softmax(1), torch.full((1, 3), 1 / 3), atol=1e-3, rtol=0)

    def test_gradient_by_hand(self):  # d(-H)/dz_k = p_k (log p_k + H)
        logits = torch.tensor([[1.0, 0.0, -2.0]], dtype=torch.float64, requires_grad=True)
        ConfidencePenalty()(logits).backward()
        p = logits.detach().softmax(1)
        torch.testing.assert_close(logits.grad, p * (p.log() - (p * p.log()).sum()))

    def test_a_single_logit_is_a_binary_prediction(self):
        logits = torch.tensor([[1.5], [-0.5]])
        both = torch.cat([logits, torch.zeros(2, 1)], dim=1)
        assert ConfidencePenalty()(logits).item() == pytest.approx(ConfidencePenalty()(both).item())
        assert ConfidencePenalty()(torch.zeros(1, 1)).item() == pytest.approx(-math.log(2))

    def test_pixels_are_averaged(self):
        logits = torch.randn(2, 3, 4, 5)
        flat = logits.movedim(1, -1).reshape(-1, 3)
        torch.testing.assert_close(ConfidencePenalty()(logits), ConfidencePenalty()(flat))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("threshold", [None, 0.5])
    def test_certain_predictions_give_no_nan(self, dtype, threshold):
        logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
        value = ConfidencePenalty(threshold)(logits)
        value.backward()
        entropies = torch.tensor([0.0, math.log(2)])
        expected = -entropies.mean() if threshold is None else (threshold - entropies).clamp_min(0).mean()
        assert value.item() == pytest.approx(expected.item(), abs=1e-6)
        assert bool(logits.grad.isfinite().all())

    def test_masked_classes_do_not_count(self):
        logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
        value = ConfidencePenalty()(logits)
        value.backward()
        assert value.item() == pytest.approx(-math.log(2))
        assert bool(logits.grad.isfinite().all())

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"threshold must be >= 0 \(nats\), or none, but got -1"):
            ConfidencePenalty(threshold=-1)
        with pytest.raises(ValueError, match=r"logits must be \(N, C\).*but got \(5,\)"):
            ConfidencePenalty()(torch.zeros(5))


class TestActivationL2:
    def test_worked_value(self):
        features = torch.tensor([[3.0, 4.0], [1.0, 0.0]], requires_grad=True)
        value = ActivationL2()(features)
        value.backward()
        assert value.item() == 13.0
        assert features.grad.tolist() == [[3.0, 4.0], [1.0, 0.0]]  # 2 h / N

    def test_zero_features_cost_nothing(self):
        assert ActivationL2()(torch.zeros(3, 5)).item() == 0.0

    def test_further_dimensions_belong_to_the_sample(self):
        assert ActivationL2()(torch.ones(2, 3, 4)).item() == 12.0

    def test_refuses_a_model_without_features(self):
        with pytest.raises(ValueError, match=r"features must be a tensor.*but got None"):
            ActivationL2()(None)
