"""Ensembles that average their members' logits, and the power law with an asymptote that tells what more members, size or data would give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from components.models.base import ModelOutput, split_output
from components.validation import require

Floats = NDArray[np.float64]


def average_logits(logits: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    r"""The ensemble's log-probabilities: :math:`\log p = \log\mathrm{softmax}\big(\sum_k w_k \log p_k\big)`.

    The same as the softmax of the averaged logits, since what normalises each member falls out. Its log-loss is at most the members'
    (weighted) mean, for every sample (Jensen).

    Args:
        logits: (K, N, C) or (K, N, C, d1, …): raw logits or log-probabilities of K members.
        weights: of the members, K numbers >= 0; default: all the same.

    Returns:
        (N, C) or (N, C, d1, …): log-probabilities, which serve as logits.

    Raises:
        ValueError: fewer than three dimensions, or weights of another number, negative or all 0.

    Source:
        Kim et al., "Pre-training under infinite compute", 2025, arXiv:2509.14786, section on ensembling.
    """
    require(logits.ndim >= 3, "logits must be (members, samples, classes, …)", tuple(logits.shape))
    members = logits.log_softmax(2)
    if weights is None:
        return members.mean(0).log_softmax(1)
    checked = checked_weights(weights, len(logits))
    shares = torch.tensor(checked, dtype=logits.dtype, device=logits.device).view(-1, *[1] * (logits.ndim - 1))
    return (members * shares).sum(0).log_softmax(1)


def checked_weights(weights: Sequence[float], members: int) -> list[float]:
    """The members' weights with a sum of 1."""
    right = len(weights) == members and all(0 <= w < math.inf for w in weights) and sum(weights) > 0
    require(right, f"weights must be {members} numbers >= 0, one a member, not all of them 0", list(weights))
    return [w / sum(weights) for w in weights]


class LogitAverage(nn.Module):
    r"""A model made of models: the average of its members' logits, see :func:`average_logits`.

    Members of one kind that differ in their first weights and in the order of the data are enough. It holds them as they are: put it in evaluation mode
    with ``.eval()`` as any model.

    Args:
        members: models of the same inputs and outputs; each returns a tensor (N, C, …) or a :class:`~components.models.base.ModelOutput`.
        weights: of the members, numbers >= 0; default: all the same.

    Shapes:
        inputs as the members'; output (N, C, …), log-probabilities; features (N, ΣD): the members' side by side, where all of them have some.

    Raises:
        ValueError: no members, or weights of another number.
    """

    def __init__(self, members: Iterable[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        require(len(self.members) >= 1, "members must be at least one model")
        self.weights = None if weights is None else checked_weights(weights, len(self.members))

    def forward(self, inputs: Tensor) -> ModelOutput:
        outputs = [split_output(member(inputs)) for member in self.members]
        features = [output.features for output in outputs]
        together = torch.cat([f for f in features if f is not None], 1) if all(f is not None for f in features) else None
        return ModelOutput(average_logits(torch.stack([output.output for output in outputs]), self.weights), together)


@dataclass(frozen=True)
class AsymptoteLaw:
    r"""The loss by one resource: :math:`L(x) = A\,x^{-a} + E`, with *E* what is left however much there is of it.

    *x* is a model's parameters, an ensemble's members, or tokens of data. Asymptotes can be fitted again: that of each size's ensembles over the sizes
    is the loss of infinitely many members of infinite size.

        law = AsymptoteLaw.fit(members, losses)
        law.asymptote, law.predict(16), law.interval(members, losses)

    Args:
        scale: *A* > 0.
        exponent: *a* > 0.
        asymptote: *E* >= 0.

    Source:
        Kim et al., "Pre-training under infinite compute", 2025, arXiv:2509.14786; least squares in the logarithms of *A* and *a* from several
        starts is our choice, as is the bootstrap over residuals.
    """

    scale: float
    exponent: float
    asymptote: float

    def __post_init__(self) -> None:
        require(self.scale > 0, "scale must be > 0", self.scale)
        require(self.exponent > 0, "exponent must be > 0", self.exponent)
        require(self.asymptote >= 0, "asymptote must be >= 0", self.asymptote)

    @classmethod
    def fit(cls, x: ArrayLike, losses: ArrayLike) -> Self:
        """The law of least squares through at least three points.

        Raises:
            ValueError: fewer than three different ``x``, values that are not finite and positive, or losses that do not fall with ``x``.
        """
        xs, ys = checked_points(x, losses)
        best = min((_descend(xs, ys, exponent) for exponent in (0.1, 0.3, 0.6, 1.0, 1.7)), key=lambda found: found[0])
        log_scale, log_exponent, asymptote = best[1]
        return cls(scale=math.exp(log_scale), exponent=math.exp(log_exponent), asymptote=max(asymptote, 0.0))

    def predict(self, x: ArrayLike) -> Any:
        """The loss at ``x``: a number for a number, an array for an array."""
        values = self.scale * np.asarray(x, dtype=np.float64) ** -self.exponent + self.asymptote
        return float(values) if values.ndim == 0 else values

    def needed(self, loss: float) -> float:
        """How much of the resource gives this loss; ``inf`` at the asymptote and below."""
        return math.inf if loss <= self.asymptote else (self.scale / (loss - self.asymptote)) ** (1 / self.exponent)

    def data_efficiency(self, data: float, loss: float) -> float:
        """How many times as much data this law, a baseline's, needs for a loss that a recipe reaches with ``data``."""
        require(data > 0, "data must be > 0", data)
        return self.needed(loss) / data

    def interval(self, x: ArrayLike, losses: ArrayLike, *, level: float = 0.9, draws: int = 200, seed: int = 0) -> tuple[float, float]:
        """(low, high) of the asymptote: refitted to residuals drawn anew, ``draws`` times.

        Args:
            x, losses: the points that it was fitted to.
            level: share of the draws between the two; default 0.9.
            draws: default 200.
            seed: of the draws.
        """
        require(0 < level < 1, "level must be in (0, 1)", level)
        xs, ys = checked_points(x, losses)
        curve = self.predict(xs)
        residuals = (ys - curve) * math.sqrt(len(xs) / max(len(xs) - 3, 1))  # three parameters took part of the spread
        generator = np.random.default_rng(seed)
        start = np.array([math.log(self.scale), math.log(self.exponent), self.asymptote])
        found = [_least_squares(xs, curve + generator.choice(residuals, len(xs)), start)[1][2] for _ in range(draws)]
        low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def checked_points(x: ArrayLike, losses: ArrayLike) -> tuple[Floats, Floats]:
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    require(xs.ndim == 1 and xs.shape == ys.shape, "x and losses must be two lists of the same length", (xs.shape, ys.shape))
    require(len(np.unique(xs)) >= 3, "x must have at least three different values for three parameters", len(np.unique(xs)))
    require(bool(np.isfinite(xs).all() and (xs > 0).all()), "x must be finite and > 0")
    require(bool(np.isfinite(ys).all()), "losses must be finite")
    require(float(np.polyfit(np.log(xs), ys, 1)[0]) < 0, "losses must fall as x rises: this law has no other form")
    return xs, ys


def _descend(xs: Floats, ys: Floats, exponent: float) -> tuple[float, Floats]:
    """Least squares from a start where, with this exponent, the other two parameters are best."""
    design = np.stack([xs**-exponent, np.ones_like(xs)], 1)
    scale, asymptote = np.linalg.lstsq(design, ys, rcond=None)[0]
    floor = max(float(asymptote), 0.0)
    return _least_squares(xs, ys, np.array([math.log(max(scale, 1e-12)), math.log(exponent), floor]))


def _least_squares(xs: Floats, ys: Floats, start: Floats) -> tuple[float, Floats]:
    from scipy.optimize import least_squares  # here, so that averages need no scipy

    def residuals(theta: Floats) -> Floats:
        return np.exp(theta[0] - np.exp(theta[1]) * np.log(xs)) + theta[2] - ys

    def slopes(theta: Floats) -> Floats:
        power = np.exp(theta[0] - np.exp(theta[1]) * np.log(xs))
        return np.stack([power, -power * np.log(xs) * np.exp(theta[1]), np.ones_like(xs)], 1)

    bounds = ([-np.inf, math.log(1e-3), 0.0], [np.inf, math.log(20.0), np.inf])
    inside = np.clip(start, [-700.0, math.log(1e-3), 1e-9], [700.0, math.log(20.0), np.inf])
    fitted = least_squares(residuals, inside, jac=slopes, bounds=bounds, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=2000)
    return float(fitted.cost), fitted.x
