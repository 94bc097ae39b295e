from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from components.models import ConvNet, ResNet


def layers(model: nn.Module) -> int:
    """Layers with weights on the longest path: convolutions but the shortcuts' 1×1 ones, and linear layers."""
    return sum(isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)) for m in model.modules())


class TestConvNet:
    def test_pools_between_blocks(self):
        model = ConvNet(1, 10)
        shapes: list[tuple[int, ...]] = []
        for block in model.blocks:
            block.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
        model(torch.randn(2, 1, 8, 8))
        assert shapes == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]

    def test_features_are_the_mean_over_the_picture(self):
        model = ConvNet(1, 3, channels=[5])
        x = torch.randn(2, 1, 6, 6)
        torch.testing.assert_close(model(x).features, model.blocks[0](x).mean((2, 3)))

    def test_digits_above_97_percent(self):
        """The default run's model, on a fixed split, in 12 plain epochs."""
        inputs, target = load_digits(return_X_y=True)
        x, y = torch.tensor(inputs / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(target)
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(x), generator=generator)
        test, train = order[:360], order[360:]
        torch.manual_seed(0)
        model = ConvNet(1, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(12):
            for part in train[torch.randperm(len(train), generator=generator)].split(64):
                optimizer.zero_grad()
                cross_entropy(model(x[part]).output, y[part]).backward()
                optimizer.step()
        accuracy = (model.eval()(x[test]).output.argmax(1) == y[test]).double().mean().item()
        assert accuracy >= 0.97


class TestResNet:
    @pytest.mark.parametrize("depth", [8, 14, 20, 26])
    def test_depth_counts_layers(self, depth):
        model = ResNet(3, 10, depth=depth)
        assert layers(model) == depth
        assert len(model.blocks) == (depth - 2) // 2

    @pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85)])
    def test_parameters_are_the_papers(self, depth, millions):
        """Table 6 of the paper counts 0.27, 0.46 and 0.85 million (shortcuts without weights; ours have a few)."""
        model = ResNet(3, 10, depth=depth)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)

    def test_stages_halve_the_picture(self):
        model = ResNet(1, 10)
        maps = model.stem(torch.randn(2, 1, 32, 32))
        sizes = []
        for block in model.blocks:
            maps = block(maps)
            sizes.append(tuple(maps.shape[1:]))
        assert sizes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]

    def test_a_block_without_its_inner_part_is_relu(self):
        block = ResNet(1, 10).blocks[0]
        nn.init.zeros_(block.inner[-1].weight)
        x = torch.randn(2, 16, 4, 4)
        torch.testing.assert_close(block(x), x.relu())
