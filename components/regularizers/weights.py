"""Regularizers on a model's weights: norms that shrink them, empty whole units, or bound how far the model can stretch its input.

All are sums over the selected weights without a factor of 1/2, computed in float32 at least; frozen parameters are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from components.regularizers.base import Axis, Regularizer, total, uncompiled, weight_matrices, widened
from components.validation import require, require_choice

Include = Literal["weights", "all"]


class _ParameterNorm(Regularizer):
    """A sum over single parameters, of all trainable ones or of the weights alone."""

    def __init__(self, include: Include = "weights") -> None:
        super().__init__()
        require_choice("include", include, ("weights", "all"))
        self.include: Include = include

    def parameters_of(self, model: nn.Module) -> list[Tensor]:
        """The selected parameters, each once."""
        fewest = 2 if self.include == "weights" else 0
        found = [widened(p) for p in uncompiled(model).parameters() if p.requires_grad and p.ndim >= fewest]
        require(bool(found), f"include={self.include!r} selects none of the model's trainable parameters; it takes weights (2 dimensions or more) or all")
        return found


class L1(_ParameterNorm):
    r"""Sum of absolute weights (lasso): drives single weights to exactly zero.

    .. math:: R(\theta) = \sum_j |\theta_j|

    Args:
        include: ``"weights"`` takes parameters with two dimensions or more (not biases, not the scales of normalisations);
            ``"all"`` takes every trainable parameter. Default ``"weights"``.

    Shapes:
        model: any module; the value is a scalar. The gradient at a weight of exactly 0 is 0.

    Raises:
        ValueError: if ``include`` is something else, or selects nothing in the model.

    Source:
        Tibshirani, "Regression Shrinkage and Selection via the Lasso", Journal of the Royal Statistical Society B 58(1), 1996.
    """

    def forward(self, model: nn.Module) -> Tensor:
        return total(p.abs().sum() for p in self.parameters_of(model))


class L2(_ParameterNorm):
    r"""Sum of squared weights (ridge): shrinks all weights in proportion.

    .. math:: R(\theta) = \sum_j \theta_j^2

    The gradient is :math:`2\theta`: with plain SGD, strength :math:`\lambda/2` is the optimizer's ``weight_decay`` of
    :math:`\lambda`. With adaptive optimizers the two differ, since these rescale this gradient too (AdamW's reason to be).

    Args:
        include: ``"weights"`` takes parameters with two dimensions or more (not biases, not the scales of normalisations);
            ``"all"`` takes every trainable parameter. Default ``"weights"``.

    Shapes:
        model: any module; the value is a scalar.

    Raises:
        ValueError: if ``include`` is something else, or selects nothing in the model.

    Source:
        Krogh and Hertz, "A Simple Weight Decay Can Improve Generalization", NeurIPS 1991.
    """

    def forward(self, model: nn.Module) -> Tensor:
        return total(p.square().sum() for p in self.parameters_of(model))


class GroupLasso(Regularizer):
    r"""Sum of the norms of whole units' weights: drives units (neurons, filters) to zero together, so that they can be cut out.

    .. math:: R(\theta) = \sum_{g} \sqrt{|g|}\; \lVert \theta_g \rVert_2

    with *g* the weights of one unit: of an output unit, those that lead into it (a row of a linear layer, a filter of a
    convolution); of an input unit, those that leave it (a column, an input channel).

    Args:
        groups: ``"outputs"`` or ``"inputs"``: which units the groups are. Default ``"outputs"``.
        scale_by_size: multiply each norm by the square root of the group's size, so that large groups are not let off.
            Default true, as in the source.

    Shapes:
        model: any module with parameters of two dimensions or more; the value is a scalar. The gradient of a group that is
        all zero is 0.

    Raises:
        ValueError: if ``groups`` is something else, or the model has no trainable weight of two dimensions.

    Source:
        Yuan and Lin, "Model Selection and Estimation in Regression with Grouped Variables", Journal of the Royal Statistical
        Society B 68(1), 2006; for networks: Scardapane et al., "Group Sparse Regularization for Deep Neural Networks", 2017,
        arXiv:1607.00485.
    """

    def __init__(self, groups: Axis = "outputs", scale_by_size: bool = True) -> None:
        super().__init__()
        require_choice("groups", groups, ("outputs", "inputs"))
        self.groups: Axis = groups
        self.scale_by_size = scale_by_size

    def forward(self, model: nn.Module) -> Tensor:
        norms = []
        for _, matrix in weight_matrices(model, self.groups):
            size = matrix.shape[1] if self.scale_by_size else 1
            norms.append(torch.linalg.vector_norm(matrix, dim=1).sum() * size**0.5)
        require(bool(norms), "model has no trainable weight with two dimensions or more, which group lasso needs")
        return total(norms)


class Spectral(Regularizer):
    r"""Sum of the squared spectral norms of the weight matrices: keeps a network from amplifying small changes of its input.

    .. math:: R(\theta) = \sum_{\ell} \sigma(W_\ell)^2, \qquad \sigma(W) = \max_{\lVert v \rVert = 1} \lVert W v \rVert

    A convolution's kernel is read as a (filters, everything else) matrix, as in the source. The source's strength is
    :math:`\lambda/2`.

    :math:`\sigma = u^\top W v` comes from power iteration, and its gradient is :math:`u v^\top`. Weights change little from
    step to step, so each step goes on from the last step's *u*, as in the source; one iteration then suffices. The *u* are
    buffers, hence in the checkpoint, and a resumed run repeats the unbroken one's numbers. Constructors do not see the
    model, so they are made at the first step (from a fixed random start, with ``warm_up`` iterations; the global random
    state is not touched) or by loading a checkpoint that has them. In evaluation mode they stay as they are.

    Args:
        iterations: power iterations a step. Default 1.
        warm_up: power iterations when a matrix is seen for the first time. Default 15.

    Shapes:
        model: any module with parameters of two dimensions or more; the value is a scalar.

    Raises:
        ValueError: if ``iterations`` < 1 or ``warm_up`` < 0, or the model has no trainable weight of two dimensions.

    Source:
        Yoshida and Miyato, "Spectral Norm Regularization for Improving the Generalizability of Deep Learning", 2017,
        arXiv:1705.10941, algorithm 1.
    """

    PREFIX: ClassVar[str] = "u/"

    def __init__(self, iterations: int = 1, warm_up: int = 15) -> None:
        super().__init__()
        require(iterations >= 1, "iterations must be >= 1", iterations)
        require(warm_up >= 0, "warm_up must be >= 0", warm_up)
        self.iterations, self.warm_up = iterations, warm_up

    def forward(self, model: nn.Module) -> Tensor:
        squares = []
        for name, matrix in weight_matrices(model):
            u, v = self._singular_vectors(name, matrix.detach())
            # written without a matrix product: autocast would take one down to half precision
            squares.append((u * (matrix * v).sum(1)).sum().square())
        require(bool(squares), "model has no trainable weight with two dimensions or more, which the spectral norm needs")
        return total(squares)

    @torch.no_grad()
    def _singular_vectors(self, name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors u, v with ``u @ matrix @ v`` near its largest singular value; keeps u for the next step."""
        buffer = self.PREFIX + name.replace(".", "/")  # a buffer's name takes no dot
        iterations, new = self.iterations, buffer not in self._buffers
        if new:
            start = torch.randn(len(matrix), generator=torch.Generator().manual_seed(0))
            self.register_buffer(buffer, torch.nn.functional.normalize(start, dim=0).to(matrix))
            iterations += self.warm_up
        kept = self._buffers[buffer]
        assert kept is not None
        if kept.device != matrix.device:  # loaded before anything told where the model lives
            self._buffers[buffer] = kept = kept.to(matrix.device)
        u, v = kept.to(matrix.dtype), torch.zeros_like(matrix[0])
        for _ in range(iterations):
            v = _direction((matrix * u.unsqueeze(1)).sum(0), v)
            u = _direction((matrix * v).sum(1), u)
        if self.training or new:
            kept.copy_(u)
        return u, v

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix + self.PREFIX) and name not in self._buffers:
                self.register_buffer(name, torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _direction(vector: Tensor, otherwise: Tensor) -> Tensor:
    """``vector`` at length 1; where it has none (a matrix of zeros), ``otherwise``, so that the iteration can go on later."""
    length = torch.linalg.vector_norm(vector)
    tiny = torch.finfo(vector.dtype).tiny
    return torch.where(length > tiny, vector / length.clamp_min(tiny), otherwise)
