"""Two towers: queries and candidates are embedded apart and meet in one product, so that millions of candidates can be searched."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from components.models.base import ModelOutput
from components.models.layers import check_inputs, init_he
from components.validation import require, require_choice


class TwoTower(nn.Module):
    r"""Dual encoder: the score of a candidate is the cosine, or the dot product, of its embedding with the query's.

    .. math:: s_{ij} = \frac{\cos(f(x_i), g_j)}{\tau} \quad\text{or}\quad \frac{f(x_i) \cdot g_j}{\tau}

    *f* is a network of the inputs; :math:`g_j` is one of the candidate's features where the data has them, else a learned vector. With one-hot users
    for inputs, ``hidden=[]`` and no features of items this is matrix factorisation.

    Args:
        input_shape: shape of one query, without the batch.
        num_outputs: L, the number of candidates.
        item_features: (L, F) features of the candidates; None: learned vectors.
        width: D, size of the embeddings.
        hidden: widths of the query tower's hidden layers; none: a linear map.
        item_hidden: the same of the candidates' tower, where they have features.
        shared: one tower for both, where both have the same number of features.
        similarity: ``cosine`` | ``dot``.
        temperature: :math:`\tau` > 0.

    Shapes:
        inputs (N, \*input_shape), floating point; output (N, L); features (N, D), the query's embedding.

    Raises:
        ValueError: an option or a size out of its range, or inputs that don't have ``input_shape``.

    Source:
        Koren, Bell, Volinsky, "Matrix Factorization Techniques for Recommender Systems", IEEE Computer 2009; Yi et al., "Sampling-Bias-Corrected
        Neural Modeling for Large Corpus Item Recommendations", RecSys 2019.
    """

    item_features: Tensor | None

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        item_features: Sequence[Sequence[float]] | None = None,
        *,
        width: int = 32,
        hidden: Sequence[int] = (),
        item_hidden: Sequence[int] = (),
        shared: bool = False,
        similarity: str = "cosine",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.input_shape = tuple(int(size) for size in input_shape)
        require(num_outputs >= 1, "num_outputs must be >= 1", num_outputs)
        require(width >= 1, "width must be >= 1", width)
        require(min([1, *hidden, *item_hidden]) >= 1, "hidden and item_hidden must hold widths >= 1", [list(hidden), list(item_hidden)])
        require_choice("similarity", similarity, ("cosine", "dot"))
        require(temperature > 0, "temperature must be > 0", temperature)
        self.similarity, self.temperature, self.feature_dim = similarity, temperature, width
        inputs = math.prod(self.input_shape)
        self.query_tower = tower(inputs, hidden, width)
        features = None if item_features is None else torch.tensor(item_features, dtype=torch.get_default_dtype())
        self.register_buffer("item_features", features, persistent=False)
        self.item_tower: nn.Module | None = None
        if features is None:
            require(not shared, "shared=true needs data whose candidates have features")
            self.items = nn.Parameter(torch.randn(num_outputs, width) / math.sqrt(width))
        else:
            require(len(features) == num_outputs, f"item_features must be those of the {num_outputs} candidates", len(features))
            require(not shared or features.shape[1] == inputs, f"shared=true needs candidates with {inputs} features, as queries have", features.shape[1])
            self.item_tower = self.query_tower if shared else tower(features.shape[1], item_hidden, width)

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "two_tower", "queries", self.input_shape)
        queries = self.query_tower(inputs.flatten(1))
        items = self.items if self.item_tower is None or self.item_features is None else self.item_tower(self.item_features)
        if self.similarity == "cosine":
            return ModelOutput(normalize(queries, dim=1) @ normalize(items, dim=1).T / self.temperature, queries)
        return ModelOutput(queries @ items.T / self.temperature, queries)


class Scorer(nn.Module):
    r"""One network for each candidate's own features: learning to rank, or the click rates of the ads of an auction.

    .. math:: s_{ij} = f(x_{ij}), \qquad x_i = (x_{i1}, \dots, x_{iL})

    Args:
        input_shape: one size, L x F: the features of all candidates of a query, candidate after candidate.
        num_outputs: L, candidates of a query.
        hidden: widths of the hidden layers; none: a linear map.

    Shapes:
        inputs (N, L F), floating point; output (N, L); features (N, D), the mean over the candidates of the last hidden layer.

    Raises:
        ValueError: a size below 1, an input size that L does not divide, or inputs of another shape.

    Source:
        Burges et al., "Learning to Rank using Gradient Descent", ICML 2005.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, *, hidden: Sequence[int] = (32,)) -> None:
        super().__init__()
        self.input_shape = tuple(int(size) for size in input_shape)
        require(num_outputs >= 1, "num_outputs must be >= 1", num_outputs)
        require(min([1, *hidden]) >= 1, "hidden must hold widths >= 1", list(hidden))
        total = math.prod(self.input_shape)
        require(total % num_outputs == 0, f"input_shape must hold {num_outputs} candidates of equally many features (a multiple of num_outputs)", total)
        self.each = (num_outputs, total // num_outputs)
        self.body = tower(self.each[1], hidden[:-1], hidden[-1]) if hidden else nn.Identity()
        self.feature_dim = hidden[-1] if hidden else self.each[1]
        self.head = nn.Linear(self.feature_dim, 1)
        self.hidden = bool(hidden)

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "scorer", "the features of all candidates", self.input_shape)
        features = self.body(inputs.flatten(1).unflatten(1, self.each))
        if self.hidden:
            features = features.relu()
        return ModelOutput(self.head(features).squeeze(-1), features.mean(1))


def tower(inputs: int, hidden: Sequence[int], width: int) -> nn.Module:
    """Linear layers with ReLU between them; the last one has no bias (one layer is an embedding table of one-hot inputs)."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([inputs, *hidden]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    layers.append(nn.Linear(hidden[-1] if hidden else inputs, width, bias=bool(hidden)))
    made = nn.Sequential(*layers)
    init_he(nn.ModuleList(layers[:-1]))
    return made
