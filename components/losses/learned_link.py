r"""LegendreTron: a proper loss that is learned with the model.

What turns scores into probabilities (the inverse link) is here not softmax alone but the gradient of a learned convex function before it.
Gradients of convex functions are written out by hand, so that one backward pass differentiates them like any layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32, check_class_indices
from components.losses.scores import require_two_classes
from components.validation import require

SMALLEST_SCALE = 1e-3


class ConvexNetwork(nn.Module):
    r"""A scalar function of (M, K) vectors that is convex in them (an ICNN), and its gradient.

    Weights between layers are made positive by softplus; every layer sees the input again through free weights, and half of its units nothing else.

    .. math:: z_1 = \phi(W_1 x + b_1), \quad z_{i+1} = \bigl[\phi(s_i \odot (P_i z_i + U_i x + c_i)),\ \phi(V_i x + d_i)\bigr], \quad
              g = s (P z_n + u^\top x)

    with :math:`\phi` softplus, *P* positive and over its fan-in, and scales :math:`s = e^{\text{log\_scale}} + 0.001`.

    Args:
        dim: K.
        width: units of a layer, even, >= 2.
        depth: layers, >= 1.
    """

    def __init__(self, dim: int, width: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.dim, self.width, self.depth = dim, width, depth
        half = width // 2
        self.first = nn.Linear(dim, width)
        self.positive = nn.ModuleList(nn.Linear(width, half) for _ in range(depth - 1))
        self.skip = nn.ModuleList(nn.Linear(dim, half) for _ in range(depth - 1))
        self.augment = nn.ModuleList(nn.Linear(dim, half) for _ in range(depth - 1))
        self.shift = nn.ParameterList(nn.Parameter(torch.zeros(half)) for _ in range(depth - 1))
        self.log_scale = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in [half] * (depth - 1) + [1])
        self.last = nn.Linear(width, 1, bias=False)
        self.last_skip = nn.Linear(dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(M, K) -> (M,), the function."""
        _, units = self._layers(x)
        top = units @ (F.softplus(self.last.weight.to(x.dtype)) / self.width).mT + _linear(self.last_skip, x)
        return (top * self._scale(-1, x)).squeeze(1)

    def gradient(self, x: Tensor) -> Tensor:
        """(M, K) -> (M, K), the function's gradient, by one pass up and one down."""
        before, _ = self._layers(x)
        half = self.width // 2
        top = self._scale(-1, x)
        upstream = (F.softplus(self.last.weight.to(x.dtype)) / self.width * top).expand(len(x), -1)
        total = (self.last_skip.weight.to(x.dtype) * top).expand(len(x), -1)
        for i in reversed(range(self.depth - 1)):
            mixed, own = before[i + 1]
            of_mixed = upstream[:, :half] * mixed.sigmoid() * self._scale(i, x)
            of_own = upstream[:, half:] * own.sigmoid()
            total = total + of_mixed @ _weight(self.skip[i], x) + of_own @ _weight(self.augment[i], x)
            upstream = of_mixed @ self._positive(i, x)
        return total + (upstream * before[0][0].sigmoid()) @ self.first.weight.to(x.dtype)

    def _layers(self, x: Tensor) -> tuple[list[tuple[Tensor, ...]], Tensor]:
        """What goes into each layer's softplus, and what comes out of the last one."""
        before: list[tuple[Tensor, ...]] = [(_linear(self.first, x),)]
        units = F.softplus(before[0][0])
        for i in range(self.depth - 1):
            below = units @ self._positive(i, x).mT + _bias(self.positive[i], x) / self.width
            mixed = (below + _linear(self.skip[i], x) + self.shift[i].to(x.dtype)) * self._scale(i, x)
            before.append((mixed, _linear(self.augment[i], x)))
            units = torch.cat([F.softplus(part) for part in before[-1]], 1)
        return before, units

    def _positive(self, i: int, x: Tensor) -> Tensor:
        return F.softplus(_weight(self.positive[i], x)) / self.width

    def _scale(self, i: int, x: Tensor) -> Tensor:
        return self.log_scale[i].to(x.dtype).exp() + SMALLEST_SCALE


class ConvexFlow(nn.Module):
    r"""The gradient of a strongly convex function: an invertible map of (M, K) that is monotone.

    .. math:: h \leftarrow \mathrm{softplus}(w_1)\, \nabla g(h) + \mathrm{softplus}(w_0)\, h

    Args:
        dim: K.
        width, depth: of the :class:`ConvexNetwork` *g*.
    """

    def __init__(self, dim: int, width: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.network = ConvexNetwork(dim, width, depth)
        self.w0 = nn.Parameter(torch.randn(1))
        self.w1 = nn.Parameter(torch.randn(1))

    def forward(self, scores: Tensor) -> Tensor:
        w0, w1 = self.w0.to(scores.dtype), self.w1.to(scores.dtype)
        return F.softplus(w1) * self.network.gradient(scores) + F.softplus(w0) * scores


class LegendreTronLoss(Loss):
    r"""LegendreTron: learns the proper loss that fits the data, by learning how scores become probabilities. For many classes and noisy labels.

    .. math:: \ell = -\log \tilde p_y, \qquad \tilde p = \mathrm{softmax}^+\bigl(v^{-1}(z)\bigr), \qquad
              \mathrm{softmax}^+(s)_k = \frac{e^{s_k}}{1 + \sum_j e^{s_j}}, \quad \mathrm{softmax}^+(s)_C = \frac{1}{1 + \sum_j e^{s_j}}

    with :math:`z_k = o_k - o_C` the C - 1 free scores and :math:`v^{-1}` a composition of gradients of convex functions (:class:`ConvexFlow`), whose
    parameters are trained with the model's. Every such loss is proper: its expectation is least where the probabilities are the true ones.
    Predictions follow :meth:`class_logits`, not the scores.

    Try it with a linear model where multinomial logistic regression fits badly. The authors' penalty of 0.0005 times the squares of all parameters, the
    loss's own included, is the optimizer's ``weight_decay=0.001`` (``optimizer=adam``).

    Args:
        num_classes: C >= 2.
        blocks: maps in :math:`v^{-1}`, >= 1.
        width: units of a layer of the convex networks, even, >= 2.
        depth: layers of the convex networks, >= 1.
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if an argument is out of its range, shapes disagree or a target lies outside [0, C).

    Source:
        Lam, Walder, Penev and Nock, "LegendreTron: Uprising Proper Multiclass Loss Learning", ICML 2023, arXiv:2301.11695. The network is that of the
        authors' code but for the start of its scales and shifts, which there follows the first batch and here is 1.001 and 0. There the model puts out
        the C - 1 scores; here C, of which the differences to the last one count, so that whatever else looks at scores has one a class (our reading).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        blocks: int = 1,
        width: int = 4,
        depth: int = 4,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(num_classes >= 2, "num_classes must be >= 2", num_classes)
        require(blocks >= 1, "blocks must be >= 1", blocks)
        require(width >= 2 and width % 2 == 0, "width must be even and >= 2", width)
        require(depth >= 1, "depth must be >= 1", depth)
        self.num_classes = num_classes
        self.flows = nn.Sequential(*(ConvexFlow(num_classes - 1, width, depth) for _ in range(blocks)))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if logits.ndim < 2 or logits.shape[1] != self.num_classes:
            raise ValueError(f"logits must have shape (N, {self.num_classes}) or (N, {self.num_classes}, d1, …), but got {tuple(logits.shape)}")
        require_two_classes(logits)
        check_class_indices(target, logits.shape[:1] + logits.shape[2:], self.num_classes, self.ignore_index)
        self.check_weight(self.num_classes)
        values = F.cross_entropy(self.class_logits(logits), target, ignore_index=self.ignore_index, reduction="none")
        return self.reduce(values, target).to(logits.dtype)

    def class_logits(self, logits: Tensor) -> Tensor:
        """Scores whose softmax is the class probabilities: the learned map of the free scores, and 0."""
        scores = logits.to(at_least_float32(logits.dtype)).movedim(1, -1)
        free = (scores[..., :-1] - scores[..., -1:]).reshape(math.prod(scores.shape[:-1]), self.num_classes - 1)
        mapped = F.pad(self.flows(free), (0, 1))
        return mapped.reshape(scores.shape).movedim(-1, 1)


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer in the precision of ``x``."""
    assert isinstance(layer, nn.Linear)
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def _weight(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return layer.weight.to(x.dtype)


def _bias(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return layer.bias.to(x.dtype)
