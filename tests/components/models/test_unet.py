from __future__ import annotations

import pytest
import torch

from components.models import UNet


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (7, 5), (16, 31), (1, 1)])
def test_output_has_the_pictures_size(size):
    assert UNet(2, 3, width=4)(torch.randn(2, 2, *size)).output.shape == (2, 3, *size)


def test_padding_is_zeros_below_and_to_the_right():
    """An odd picture gives what the picture padded by hand gives, cropped."""
    torch.manual_seed(0)
    model = UNet(1, 2, depth=2, width=4).eval()
    x = torch.randn(2, 1, 6, 7)
    padded = torch.zeros(2, 1, 8, 8)
    padded[:, :, :6, :7] = x
    torch.testing.assert_close(model(x).output, model(padded).output[:, :, :6, :7])


def test_features_feed_the_output_layer():
    model = UNet(1, 2, width=4)
    result = model(torch.randn(2, 1, 8, 8))
    weight, bias = model.head.weight[:, :, 0, 0], model.head.bias
    torch.testing.assert_close(result.output.mean((2, 3)), result.features @ weight.T + bias)


def test_levels():
    model = UNet(1, 2, depth=3, width=4)
    shapes: list[tuple[int, ...]] = []
    for level in model.encoder:
        level.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    model(torch.randn(1, 1, 16, 16))
    assert shapes == [(4, 16, 16), (8, 8, 8), (16, 4, 4), (32, 2, 2)]


def test_skip_connections_carry_detail():
    """With the lower levels silenced the output still follows every pixel."""
    torch.manual_seed(0)
    model = UNet(1, 1, depth=2, width=8, norm="none")
    for up in model.up:
        torch.nn.init.zeros_(up.weight)
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    gradient = torch.autograd.grad(model(x).output.sum(), x)[0]
    assert (gradient != 0).all()
