r"""An output layer whose training step costs the same for a thousand classes and for a million.

A spherical loss sees the scores :math:`o = W h` through :math:`q = h^\top Q h`, :math:`s = \bar w^\top h` and :math:`o_y = W_y h` alone, with
:math:`Q = W^\top W` and :math:`\bar w = W^\top 1` of the size of the hidden layer. Its gradient with respect to the scores is
:math:`\alpha\, o + \beta\, 1 + \gamma\, e_y`, so a step of gradient descent on *W* is

.. math:: W \leftarrow W (I - \eta H^\top \mathrm{diag}(\alpha) H) - \eta\, 1\, (H^\top \beta)^\top - \eta \sum_i \gamma_i e_{y_i} h_i^\top

dense, but of low rank up to the targets' rows. With :math:`W = V U + 1 \omega^\top` the first two terms change *U* and :math:`\omega` only and the third
one the targets' rows of *V*: no other row is ever touched.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.losses.base import check_class_indices, reduce_values
from components.losses.spherical import SphericalLoss
from components.validation import require


class SphericalOutput(nn.Module):
    r"""Output layer and spherical loss in one, trained by exact gradient descent at a cost that does not depend on the number of classes.

    .. math:: \ell_i = \ell(h_i^\top Q h_i,\ \bar w^\top h_i,\ W_{y_i} h_i), \qquad W = V U + 1 \omega^\top, \quad Q = W^\top W, \quad \bar w = W^\top 1

    A step on N samples costs :math:`O(N D^2 + N^2 D + N^3)`: for N up to D, :math:`O(D^2)` a sample. It is plain gradient descent without momentum
    or weight decay, and not an approximation: it gives the weights that a dense step gives, up to rounding. :meth:`step` does all of it:

    >>> layer = SphericalOutput(64, 1_000_000, ZLoss())
    >>> loss, gradient = layer.step(hidden.detach(), target, lr=0.1)     # W is updated
    >>> hidden.backward(gradient)                                        # on to the layers below

    Steps shrink directions of *U* that are used, and the rounding error of *V* grows with it. Every ``check_every`` steps the singular values of *U*
    are looked at (:math:`O(D^3)`); those outside ``bounds`` are moved into *V*, which touches all rows (:math:`O(C D)` each) and happens seldom.

    Args:
        feature_dim: D.
        num_classes: C >= 2.
        loss: a spherical loss: ``ZLoss``, ``TaylorSoftmaxLoss`` (of order 2), ``SphericalSoftmaxLoss`` or a :class:`SphericalLoss` of your own; without
            class weights.
        check_every: steps between two looks at *U*, >= 1.
        bounds: lowest and highest singular value of *U* that is left alone.

    Shapes:
        hidden (N, D); target (N,), class indices; :meth:`step` returns a scalar and (N, D).

    Raises:
        ValueError: if an argument is out of its range, shapes disagree or a target lies outside [0, C).

    Source:
        Vincent, de Brébisson and Bouthillier, "Efficient Exact Gradient Update for training Deep Networks with Very Large Sparse Targets", NeurIPS 2015,
        arXiv:1412.7091; for Z-loss and the rest of the family: de Brébisson and Vincent 2016, arXiv:1604.08859. The vector :math:`\omega`, which carries
        what is added to every row, is our way to the terms in *s*.
    """

    factor: Tensor
    mixing: Tensor
    inverse: Tensor
    shared: Tensor
    gram: Tensor
    total: Tensor

    def __init__(
        self, feature_dim: int, num_classes: int, loss: SphericalLoss, *, check_every: int = 100, bounds: tuple[float, float] = (1e-2, 1e2)
    ) -> None:
        super().__init__()
        require(feature_dim >= 1, "feature_dim must be >= 1", feature_dim)
        require(num_classes >= 2, "num_classes must be >= 2", num_classes)
        require(isinstance(loss, SphericalLoss) and loss.weight is None, "loss must be a spherical loss without class weights", type(loss).__name__)
        require(check_every >= 1, "check_every must be >= 1", check_every)
        require(0 < bounds[0] < 1 < bounds[1], "bounds must be (low, high) with 0 < low < 1 < high", tuple(bounds))
        self.loss = loss
        self.num_classes = num_classes
        self.check_every, self.bounds = check_every, bounds
        self.steps = 0
        for name in ("factor", "mixing", "inverse", "shared", "gram", "total"):
            self.register_buffer(name, torch.empty(0))
        self.set_weight(torch.randn(num_classes, feature_dim) / feature_dim**0.5)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Take over a dense (C, D) weight; the layer keeps its type (float64 for the most exact steps)."""
        require(weight.ndim == 2 and len(weight) == self.num_classes, f"weight must have shape ({self.num_classes}, D)", tuple(weight.shape))
        identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        self.factor = weight.clone()  # V
        self.mixing, self.inverse = identity, identity.clone()  # U and its inverse
        self.shared = weight.new_zeros(weight.shape[1])  # omega
        self.gram, self.total = weight.mT @ weight, weight.sum(0)  # Q and W^T 1

    @property
    def weight(self) -> Tensor:
        """The dense (C, D) weight, computed anew: for evaluation, not for training."""
        return self.factor @ self.mixing + self.shared

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        """The loss under its own reduction, differentiable with respect to ``hidden``."""
        self._check(hidden, target)
        kept = target != self.loss.ignore_index
        values = self.loss.of_sums(*self._sums(hidden, target.masked_fill(~kept, 0)), self.num_classes)
        return reduce_values(values, kept.to(values.dtype), self.loss.reduction)

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, C) scores, for evaluation: this does touch every class."""
        return (hidden @ self.mixing.mT) @ self.factor.mT + (hidden @ self.shared).unsqueeze(1)

    @torch.no_grad()
    def step(self, hidden: Tensor, target: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """One step of gradient descent on the weight, of the mean loss over the batch (or the sum, as the loss reduces).

        Returns:
            The loss before the step, and its gradient with respect to ``hidden``.
        """
        self._check(hidden, target)
        kept = target != self.loss.ignore_index
        classes = target.masked_fill(~kept, 0)
        with torch.enable_grad():
            sums = tuple(value.detach().requires_grad_() for value in self._sums(hidden, classes))
            values = self.loss.of_sums(sums[0], sums[1], sums[2], self.num_classes)
            loss = reduce_values(values, kept.to(values.dtype), "sum" if self.loss.reduction == "sum" else "mean")
            by_squares, by_total, by_target = (value.unsqueeze(1) for value in torch.autograd.grad(loss, sums, materialize_grads=True))
        gradient = 2 * by_squares * (hidden @ self.gram) + by_total * self.total + by_target * self._rows(classes)
        self._update(hidden, classes, 2 * by_squares, by_total, by_target, lr)
        self.steps += 1
        if self.steps % self.check_every == 0:
            self.renormalise()
        return loss.detach(), gradient

    def _sums(self, hidden: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return ((hidden @ self.gram) * hidden).sum(1), hidden @ self.total, (self._rows(classes) * hidden).sum(1)

    def _rows(self, classes: Tensor) -> Tensor:
        """(N, D) rows of the weight."""
        return self.factor[classes] @ self.mixing + self.shared

    def _update(self, h: Tensor, classes: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, lr: float) -> None:
        """W <- W P + 1 b^T + S with P = I - lr h^T diag(alpha) h, and everything kept beside it; coefficients (N, 1)."""
        scaled = lr * alpha * h
        b, sparse = -lr * (beta * h).sum(0), -lr * gamma * h
        rows = self._rows(classes) - (self._rows(classes) @ scaled.mT) @ h  # of W P, P = I - scaled^T h is symmetric
        of_sparse = sparse.sum(0)

        # Q: (W P + E)^T (W P + E) with E = 1 b^T + S
        gram = self.gram - (self.gram @ h.mT) @ scaled
        gram = gram - scaled.mT @ (h @ gram)
        total = self.total - h.mT @ (scaled @ self.total)  # (W P)^T 1
        same = (classes.unsqueeze(0) == classes.unsqueeze(1)).to(h.dtype)
        cross = torch.outer(total + of_sparse, b) + rows.mT @ sparse
        self.gram = gram + cross + cross.mT + self.num_classes * torch.outer(b, b) + sparse.mT @ (same @ sparse)
        self.total = total + self.num_classes * b + of_sparse

        # U <- U P, its inverse by Woodbury, and the sparse part into V
        small = torch.eye(len(h), dtype=h.dtype, device=h.device) - h @ scaled.mT
        self.mixing = self.mixing - (self.mixing @ scaled.mT) @ h
        self.inverse = self.inverse + scaled.mT @ torch.linalg.solve(small, h @ self.inverse)
        self.shared = self.shared - h.mT @ (scaled @ self.shared) + b
        self.factor.index_add_(0, classes, sparse @ self.inverse)

    @torch.no_grad()
    def renormalise(self) -> int:
        """Move singular values of *U* that are out of bounds into *V*, and compute its inverse anew; how many there were.

        ``set_weight(layer.weight)`` computes Q anew too, at O(C D^2).
        """
        left, values, right = torch.linalg.svd(self.mixing)
        out = ((values < self.bounds[0]) | (values > self.bounds[1])).nonzero().squeeze(1)
        if len(out):
            directions = left[:, out]
            self.factor += (self.factor @ directions * (values[out] - 1)) @ directions.mT
            values = values.index_fill(0, out, 1.0)
            self.mixing = (left * values) @ right
        self.inverse = (right.mT / values) @ left.mT
        self.gram = (self.gram + self.gram.mT) / 2
        return len(out)

    def _check(self, hidden: Tensor, target: Tensor) -> None:
        dim = self.mixing.shape[0]
        if hidden.ndim != 2 or hidden.shape[1] != dim:
            raise ValueError(f"hidden must have shape (N, {dim}), but got {tuple(hidden.shape)}")
        check_class_indices(target, hidden.shape[:1], self.num_classes, self.loss.ignore_index)

    def extra_repr(self) -> str:
        return f"feature_dim={self.mixing.shape[0]}, num_classes={self.num_classes}"
