"""Heads that a task puts on a model's features: the projection of self-supervision and the embedding of metric learning."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

from components.models.layers import check_inputs
from components.validation import require, require_choice


class ProjectionHead(nn.Module):
    r"""SimCLR's projection: an MLP whose output the contrastive loss compares, while later use takes the features before it.

    .. math:: g(h) = W_2\, \mathrm{relu}(\mathrm{norm}(W_1 h))

    Args:
        in_features: size of the features.
        hidden: width of the hidden layers; default: ``in_features``, as in the paper.
        out_features: size of the projection; the paper's is 128.
        depth: linear layers, >= 2; SimCLR v2 and Barlow Twins use 3.
        norm: ``batch`` (the authors' code), ``layer`` (sees one sample at a time: the same on one process and on several) or ``none``.

    Shapes:
        features (N, in_features) -> (N, out_features), not normalised.

    Source:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv:2002.05709, section 2.1.
    """

    def __init__(self, in_features: int, hidden: int | None = None, out_features: int = 128, *, depth: int = 2, norm: str = "batch") -> None:
        super().__init__()
        hidden = in_features if hidden is None else hidden
        for name, value in {"in_features": in_features, "hidden": hidden, "out_features": out_features}.items():
            require(value >= 1, f"{name} must be >= 1", value)
        require(depth >= 2, "depth must be >= 2 linear layers", depth)
        require_choice("norm", norm, ("batch", "layer", "none"))
        self.in_features, self.out_features = in_features, out_features
        layers: list[nn.Module] = []
        width = in_features
        for _ in range(depth - 1):
            layers.append(nn.Linear(width, hidden, bias=norm == "none"))
            if norm != "none":
                layers.append(nn.BatchNorm1d(hidden) if norm == "batch" else nn.LayerNorm(hidden))
            layers.append(nn.ReLU())
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, out_features))

    def forward(self, features: Tensor) -> Tensor:
        check_inputs(features, "projection head", "features", (self.in_features,))
        return self.layers(features)


class EmbeddingHead(nn.Module):
    r"""Metric learning's embedding: a linear layer on the features, which may be normalised first.

    .. math:: e(h) = W\,\mathrm{norm}(h) + b

    Args:
        in_features: size of the features.
        out_features: size of the embedding.
        layer_norm: normalise the features first.
        normalize: return embeddings of length 1; the task offers raw ones, so its losses normalise where they want that.

    Shapes:
        features (N, in_features) -> (N, out_features).

    Source:
        Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning", BMVC 2019, arXiv:1811.12649, section 3.
    """

    def __init__(self, in_features: int, out_features: int = 64, *, layer_norm: bool = False, normalize: bool = False) -> None:
        super().__init__()
        for name, value in {"in_features": in_features, "out_features": out_features}.items():
            require(value >= 1, f"{name} must be >= 1", value)
        self.in_features, self.out_features, self.normalize = in_features, out_features, normalize
        self.norm = nn.LayerNorm(in_features) if layer_norm else nn.Identity()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        check_inputs(features, "embedding head", "features", (self.in_features,))
        embeddings = self.linear(self.norm(features))
        return normalize(embeddings, dim=1) if self.normalize else embeddings
