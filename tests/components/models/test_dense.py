from __future__ import annotations

import pytest
import torch
from torch import nn

from components.models import MLP, LinearModel


class TestLinear:
    def test_is_the_matrix_product(self):
        model = LinearModel((2, 3), 4)
        inputs = torch.randn(5, 2, 3)
        torch.testing.assert_close(model(inputs).output, inputs.reshape(5, 6) @ model.head.weight.T + model.head.bias)
        assert torch.equal(model(inputs).features, inputs.reshape(5, 6))

    def test_without_bias_zero_goes_to_zero(self):
        assert not LinearModel((3,), 2, bias=False)(torch.zeros(4, 3)).output.any()


class TestMLP:
    def test_is_the_textbooks(self):
        model = MLP((4,), 2, hidden=[8, 3])
        x = torch.randn(5, 4)
        (w1, b1, w2, b2, w3, b3) = (p.detach() for p in model.parameters())
        hidden = ((x @ w1.T + b1).relu() @ w2.T + b2).relu()
        torch.testing.assert_close(model(x).features, hidden)
        torch.testing.assert_close(model(x).output, hidden @ w3.T + b3)

    def test_feature_dim_is_the_last_width(self):
        assert MLP((4,), 2, hidden=[8, 3]).feature_dim == 3

    def test_number_of_parameters_of_the_benchmark(self):
        """64-128-128-10."""
        assert sum(p.numel() for p in MLP((1, 8, 8), 10).parameters()) == 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10

    @pytest.mark.parametrize(("norm", "layer"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
    def test_norm(self, norm, layer):
        assert sum(isinstance(m, layer) for m in MLP((4,), 2, norm=norm).modules()) == 2

    @pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
    def test_activations_differ(self, activation):
        torch.manual_seed(0)
        chosen = MLP((4,), 2, activation=activation)
        torch.manual_seed(0)
        relu = MLP((4,), 2)
        x = torch.randn(5, 4)
        assert torch.equal(chosen(x).output, relu(x).output) == (activation == "relu")

    def test_dropout_acts_in_training_only(self):
        torch.manual_seed(0)
        model, x = MLP((4,), 2, dropout=0.5), torch.randn(5, 4)
        assert not torch.equal(model(x).output, model(x).output)
        model.eval()
        assert torch.equal(model(x).output, model(x).output)
