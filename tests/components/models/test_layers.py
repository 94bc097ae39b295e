from __future__ import annotations

import pytest
import torch
from torch import nn

from components.models.layers import activation, check_inputs, init_he, norm2d


class TestCheckInputs:
    def test_says_what_is_taken_and_what_came(self):
        says = r"model=convnet takes images \(N, 3, H, W\) of floating-point numbers, but got inputs of shape \(5, 13\) and torch.float32"
        with pytest.raises(ValueError, match=says):
            check_inputs(torch.zeros(5, 13), "convnet", "images", (3, "H", "W"))

    def test_tokens_are_integers(self):
        check_inputs(torch.zeros(2, 4, dtype=torch.long), "lm", "tokens", ("T",), tokens=True)
        with pytest.raises(ValueError, match="integers"):
            check_inputs(torch.zeros(2, 4), "lm", "tokens", ("T",), tokens=True)


class TestNorm2d:
    @pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 1), (4, 1), (8, 2), (16, 4), (18, 2), (32, 8), (64, 8), (20, 4)])
    def test_groups_divide_and_hold_four(self, channels, groups):
        norm = norm2d("group", channels)
        assert isinstance(norm, nn.GroupNorm) and norm.num_groups == groups
        assert channels % groups == 0 and (groups == 1 or channels // groups >= 4)

    def test_unknown(self):
        with pytest.raises(ValueError, match="did you mean 'batch'"):
            norm2d("bach", 4)


def test_unknown_activation():
    with pytest.raises(ValueError, match="activation must be one of relu, gelu, silu, tanh"):
        activation("swish!")


@pytest.mark.parametrize("layer", [nn.Linear(400, 300), nn.Conv2d(40, 300, 3), nn.ConvTranspose2d(400, 75, 2, stride=2)])
def test_init_he_keeps_the_variance_through_relu(layer):
    """What comes out of the layer after a ReLU has the mean square of what went in, 1."""
    torch.manual_seed(0)
    init_he(layer)
    inputs = {nn.Linear: (64, 400), nn.Conv2d: (4, 40, 9, 9), nn.ConvTranspose2d: (4, 400, 6, 6)}[type(layer)]
    output = layer(torch.randn(inputs).relu() * 2**0.5)
    assert output.square().mean().item() == pytest.approx(2.0, rel=0.15)
    assert not layer.bias.any()
