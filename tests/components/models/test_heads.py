from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, normalize

from components.models import EmbeddingHead, ProjectionHead


class TestProjectionHead:
    def test_is_simclrs(self):
        head = ProjectionHead(6, 5, 3)
        x = torch.randn(8, 6)
        w1, gain, shift, w2, b2 = (p.detach() for p in head.parameters())
        hidden = batch_norm(x @ w1.T, None, None, gain, shift, training=True).relu()
        torch.testing.assert_close(head(x), hidden @ w2.T + b2)

    def test_hidden_defaults_to_the_features_size(self):
        assert ProjectionHead(6).layers[0].out_features == 6

    @pytest.mark.parametrize("depth", [2, 3, 4])
    def test_depth_counts_linear_layers(self, depth):
        head = ProjectionHead(6, 5, 3, depth=depth)
        assert sum(isinstance(m, nn.Linear) for m in head.modules()) == depth
        assert head(torch.randn(4, 6)).shape == (4, 3)

    @pytest.mark.parametrize("norm", ["layer", "none"])
    def test_without_batch_norm_samples_are_independent(self, norm):
        head, x = ProjectionHead(6, 5, 3, norm=norm), torch.randn(8, 6)
        torch.testing.assert_close(head(x)[:2], head(x[:2]))

    @pytest.mark.parametrize("norm", ["batch", "layer", "none"])
    def test_gradient_reaches_every_parameter(self, norm):
        head = ProjectionHead(6, 5, 3, norm=norm)
        (head(torch.randn(8, 6)) * torch.randn(8, 3)).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())

    @pytest.mark.parametrize(
        ("options", "says"), [({"depth": 1}, "depth"), ({"norm": "group"}, "norm"), ({"hidden": 0}, "hidden"), ({"out_features": 0}, "out_features")]
    )
    def test_wrong_options(self, options, says):
        with pytest.raises(ValueError, match=says):
            ProjectionHead(6, **options)

    def test_wrong_features(self):
        with pytest.raises(ValueError, match=r"projection head takes features \(N, 6\)"):
            ProjectionHead(6)(torch.randn(4, 7))


class TestEmbeddingHead:
    def test_is_linear(self):
        head, x = EmbeddingHead(6, 3), torch.randn(4, 6)
        torch.testing.assert_close(head(x), x @ head.linear.weight.T + head.linear.bias)

    def test_layer_norm_takes_away_the_features_scale(self):
        head, x = EmbeddingHead(6, 3, layer_norm=True), torch.randn(4, 6)
        torch.testing.assert_close(head(100 * x), head(x), atol=1e-3, rtol=1e-3)

    def test_normalize(self):
        torch.manual_seed(0)
        head = EmbeddingHead(6, 3, normalize=True)
        x = torch.randn(4, 6)
        torch.testing.assert_close(head(x), normalize(head.linear(x), dim=1))
        torch.testing.assert_close(head(x).norm(dim=1), torch.ones(4))

    def test_wrong_features(self):
        with pytest.raises(ValueError, match=r"embedding head takes features \(N, 6\)"):
            EmbeddingHead(6)(torch.randn(4, 2, 6))
