import math

import pytest
import torch

from components.models import CrossNetwork, FusedCrossNetwork


@pytest.mark.parametrize("growth", ["exponential", "linear"])
@pytest.mark.parametrize("gate", ["self_mask", "affine"])
def test_without_weights_it_is_the_identity(growth: str, gate: str) -> None:
    network = CrossNetwork(6, 3, growth, gate)
    for parameter in [*network.maps.parameters(), *network.biases]:
        torch.nn.init.zeros_(parameter)
    x = torch.randn(4, 6)
    assert torch.equal(network(x), x)


@pytest.mark.parametrize(("growth", "order"), [("linear", 4), ("exponential", 8)])
def test_order_of_the_crosses(growth: str, order: int) -> None:
    """Scaled by t, with no bias: log |x_last| / log t tends to layers + 1 or to 2^layers."""
    torch.manual_seed(0)
    network = CrossNetwork(8, 3, growth).double()
    for bias in network.biases:
        torch.nn.init.zeros_(bias)
    x = torch.randn(1, 8, dtype=torch.float64)
    sizes = [float(network(t * x).detach().norm()) for t in (1e8, 1e9)]
    assert math.log10(sizes[1] / sizes[0]) == pytest.approx(order, abs=1e-3)


def test_one_layer_by_hand() -> None:
    network = CrossNetwork(4, 1, "exponential")
    x = torch.randn(3, 4)
    c = x @ network.maps[0].weight.T
    mask = c * torch.nn.functional.layer_norm(c, (2,)).relu()
    torch.testing.assert_close(network(x), x * (torch.cat([c, mask], 1) + network.biases[0]) + x)


def test_self_mask_zeroes_about_half() -> None:
    network = CrossNetwork(64, 1)
    c = network.maps[0](torch.randn(200, 64))
    assert 0.4 < float((network.norms[0](c).relu() == 0).float().mean()) < 0.6


def test_a_branch_of_its_own_is_ecn_or_lcn() -> None:
    for branch in ("exponential", "linear"):
        assert FusedCrossNetwork(5, branches=[branch])(torch.randn(2, 5)).output.shape == (2, 1)


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="size must be even"):
        CrossNetwork(5)
