r"""What a server, or a neighbour, makes of several workers' vectors (gradients, momenta, models) when some of the workers may be faulty.

A rule takes the vectors of n workers as one tensor (n, d) and the number *f* < n / 2 of faulty ones that it has to stand, and gives one vector (d,):

    aggregate = RULES["flag"](torch.stack(gradients), faulty=2)

:func:`nearest_neighbour_average` alone gives each worker a vector of its own. None of them changes its input; the order of the workers means nothing to
any of them (ties of distances aside). Faults that can be simulated, and workers to try them on: :mod:`components.averaging.byzantine`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from components.validation import require, require_choice

Rule = Callable[[Tensor, int], Tensor]
"""(vectors (n, d), faulty) -> (d,)"""

Form = Literal["paper", "code", "normalised"]


def mean(vectors: Tensor, faulty: int = 0) -> Tensor:
    """The plain average, which a single faulty worker can lead anywhere."""
    checked(vectors, faulty)
    return vectors.mean(0)


def coordinate_median(vectors: Tensor, faulty: int = 0) -> Tensor:
    """The median of each coordinate; of an even number the mean of the two in the middle. Yin et al., ICML 2018, arXiv:1803.01498."""
    count = checked(vectors, faulty)
    ordered = vectors.sort(0).values
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def trimmed_mean(vectors: Tensor, faulty: int) -> Tensor:
    """The mean of each coordinate without its *f* lowest and *f* highest values. Yin et al., ICML 2018, arXiv:1803.01498."""
    count = checked(vectors, faulty)
    return vectors.sort(0).values[faulty : count - faulty].mean(0)


def geometric_median(vectors: Tensor, faulty: int = 0, *, iterations: int = 100, smoothing: float = 1e-6) -> Tensor:
    r"""The point with the least sum of distances, by Weiszfeld's iterations.

    .. math:: z \leftarrow \sum_i w_i x_i \Big/ \sum_i w_i, \qquad w_i = 1 / \lVert x_i - z \rVert

    Args:
        vectors: (n, d).
        faulty: below n / 2; it needs no number.
        iterations: default 100.
        smoothing: least distance that counts, as a part of the mean distance; default 1e-6.

    Source:
        Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", 2022, arXiv:1912.13445.
    """
    checked(vectors, faulty)
    point = coordinate_median(vectors)
    for _ in range(iterations):
        distances = torch.linalg.vector_norm(vectors - point, dim=1)
        weights = 1 / distances.clamp(min=(smoothing * distances.mean()).clamp(min=torch.finfo(vectors.dtype).tiny))
        point = (weights / weights.sum()) @ vectors
    return point


def krum(vectors: Tensor, faulty: int) -> Tensor:
    """The one vector that is nearest to its n - f - 2 nearest others. Blanchard et al., NeurIPS 2017, arXiv:1703.02757."""
    return multi_krum(vectors, faulty, chosen=1)


def multi_krum(vectors: Tensor, faulty: int, *, chosen: int | None = None) -> Tensor:
    """The mean of the vectors with the smallest sums of squared distances to their n - f - 2 nearest others.

    Args:
        vectors: (n, d), n >= 2 f + 3.
        faulty: *f*.
        chosen: how many of them; default n - f - 2.

    Source:
        Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017, arXiv:1703.02757.
    """
    count = checked(vectors, faulty)
    require(count >= 2 * faulty + 3, f"krum needs at least 2 f + 3 workers, {2 * faulty + 3} for f = {faulty}", count)
    chosen = count - faulty - 2 if chosen is None else chosen
    require(1 <= chosen <= count, f"chosen must be in 1 … {count}", chosen)
    squared = distances_between(vectors).square()
    scores = squared.sort(1).values[:, 1 : count - faulty - 1].sum(1)  # the first is its own, 0
    return vectors[scores.argsort(stable=True)[:chosen]].mean(0)


def centred_clipping(vectors: Tensor, faulty: int = 0, *, radius: float = 2.0, iterations: int = 3) -> Tensor:
    r"""From the coordinate median on, thrice: the mean of what the workers differ by, each clipped to ``radius``.

    Source:
        Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, arXiv:2012.10333.
    """
    checked(vectors, faulty)
    require(radius > 0, "radius must be > 0", radius)
    centre = coordinate_median(vectors)
    for _ in range(iterations):
        apart = vectors - centre
        norms = torch.linalg.vector_norm(apart, dim=1, keepdim=True).clamp(min=torch.finfo(vectors.dtype).tiny)
        centre = centre + (apart * (radius / norms).clamp(max=1)).mean(0)
    return centre


def centred_average(vectors: Tensor, faulty: int, *, pivot: Tensor | None = None) -> Tensor:
    """CVA: the mean of the n - f vectors that are nearest to a pivot; default: the coordinate median. Nearest-neighbour averaging for a server.

    Source:
        Farhadkhani et al., "Robust Collaborative Learning with Linear Gradient Overhead", ICML 2023, arXiv:2209.10931.
    """
    count = checked(vectors, faulty)
    pivot = coordinate_median(vectors) if pivot is None else pivot
    distances = torch.linalg.vector_norm(vectors - pivot, dim=1)
    return vectors[distances.argsort(stable=True)[: count - faulty]].mean(0)


def nearest_neighbour_average(vectors: Tensor, faulty: int, received: Tensor | None = None) -> Tensor:
    r"""NNA: each worker's mean of the :math:`|R_i| - f` vectors that are nearest to its own, among those that it received.

    Args:
        vectors: (n, d), each worker's own.
        faulty: *f*.
        received: (n, n) bool, whether worker i received worker j's; its own always counts. Default: all received all.

    Returns:
        (n, d).

    Raises:
        ValueError: a worker received no more than *f* vectors.

    Source:
        Farhadkhani et al., "Robust Collaborative Learning with Linear Gradient Overhead", ICML 2023, arXiv:2209.10931, algorithm 1.
    """
    count = checked(vectors, faulty)
    own = torch.eye(count, dtype=torch.bool, device=vectors.device)
    require(received is None or received.shape == own.shape, f"received must have the shape {tuple(own.shape)}")
    there = torch.ones_like(own) if received is None else received | own
    counts = there.sum(1) - faulty
    require(bool((counts >= 1).all()), f"every worker must receive more than f = {faulty} vectors, its own included")
    distances = distances_between(vectors).masked_fill(~there, float("inf")).masked_fill(own, -1.0)
    rank = distances.argsort(dim=1, stable=True).argsort(dim=1)
    chosen = (rank < counts[:, None]).to(vectors.dtype)
    return (chosen / counts[:, None]) @ vectors


def flag(
    vectors: Tensor,
    faulty: int = 0,
    *,
    rank: int | None = None,
    pairwise: float = 0.0,
    iterations: int = 20,
    form: Form = "paper",
    start: Tensor | None = None,
) -> Tensor:
    r"""Flag aggregator: the mean of what the workers' vectors have in the subspace that explains most of them.

    .. math:: \min_{Y^\top Y = I} \sum_i \sqrt{1 - v_i} + \frac{\lambda}{p (p - 1)} \sum_{i \ne j} \sqrt{1 - v_{ij}}, \qquad
              v_i = \frac{\lVert Y^\top g_i \rVert^2}{\lVert g_i \rVert^2}, \qquad d = \frac1p \sum_i Y Y^\top g_i

    with :math:`v_{ij}` the same of :math:`g_i - g_j`; solved by reweighted least squares (each time the left singular vectors of the columns, weighed by
    :math:`(1 - v)^{-1/4}`), which never raises the objective. The square root forgives a few vectors that lie elsewhere. All of it is done on
    the Gram matrix of the columns, so *d* may be large.

    Which of several minima is found depends on the start: with vectors (1, 0), (1, 0), (0, 1) and ``rank=1`` a start at (0, 1) stays
    there. Here the first weights are all 1 (principal components); the authors' code starts at random.

    Args:
        vectors: (p, d). A vector of zeros counts in the mean, not in the subspace.
        faulty: below p / 2; it needs no number.
        rank: *m*, dimensions of *Y*; default :math:`\lceil (p + 1) / 2 \rceil`. Choose the number of honest directions; p gives the mean.
        pairwise: :math:`\lambda` >= 0; default 0. The differences are normalised, as in the objective (the authors' code leaves them as they are).
        iterations: at most so many; it ends when the objective stays; default 20.
        form: ``paper`` as above; ``code``: :math:`\frac1m \sum_i Y Y^\top g_i / \lVert g_i \rVert`, which no worker's size can sway, nor the gradient's (a
            normalised step); ``normalised``: its direction, with :math:`\frac1p` and the median of the norms. With ``paper`` and *m* > 1 a few
            very large vectors get dimensions of their own and pass unharmed: it needs workers of like norms.
        start: (d, m) orthonormal columns to begin with instead.

    Source:
        Almasi et al., "Flag Aggregator: Scalable Distributed Training under Failures and Augmented Losses using Convex Optimization", ICLR 2024,
        arXiv:2302.05865, and the authors' code.
    """
    exact, coefficients, _ = flag_subspace(vectors, faulty, rank=rank, pairwise=pairwise, iterations=iterations, start=start)
    dimensions = coefficients.shape[1]
    basis = exact @ coefficients
    wide = vectors.to(exact.dtype)
    require_choice("form", form, ("paper", "code", "normalised"))
    if form == "paper":
        total = wide.mean(0)
    else:
        total = torch.nn.functional.normalize(wide, dim=1).sum(0)
        total = total / dimensions if form == "code" else total / len(wide) * coordinate_median(wide.norm(dim=1, keepdim=True))
    return (basis @ (basis.mT @ total)).to(vectors.dtype)


def flag_subspace(
    vectors: Tensor, faulty: int = 0, *, rank: int | None = None, pairwise: float = 0.0, iterations: int = 20, start: Tensor | None = None
) -> tuple[Tensor, Tensor, list[float]]:
    """(columns (d, c), coefficients (c, m), objectives): the basis of :func:`flag` is ``columns @ coefficients``."""
    count = checked(vectors, faulty)
    rank = (count + 2) // 2 if rank is None else rank
    require(1 <= rank <= count, f"rank must be in 1 … {count}, the number of workers", rank)
    require(pairwise >= 0, "pairwise must be >= 0", pairwise)
    require(iterations >= 1, "iterations must be >= 1", iterations)
    exact = vectors.to(torch.float64)
    columns, importance = exact, torch.ones(count, dtype=torch.float64, device=vectors.device)
    if pairwise and count > 1:
        one, other = torch.triu_indices(count, count, 1, device=vectors.device)
        columns = torch.cat([columns, exact[one] - exact[other]])
        each = torch.full((len(one),), 2 * pairwise / (count * (count - 1)), dtype=torch.float64, device=vectors.device)  # i, j and j, i
        importance = torch.cat([importance, each])
    norms = torch.linalg.vector_norm(columns, dim=1, keepdim=True)
    units = torch.where(norms > 0, columns / norms.clamp(min=torch.finfo(torch.float64).tiny), torch.zeros_like(columns))
    importance = importance * (norms[:, 0] > 0)
    gram = units @ units.mT
    explained = torch.zeros_like(importance) if start is None else (units @ start.to(torch.float64)).square().sum(1)
    coefficients, objectives = units.new_zeros(len(units), rank), [float("inf")]
    for _ in range(iterations):
        scales = importance.sqrt() * ((1 - explained).abs() + 1e-7) ** -0.25
        values, axes = torch.linalg.eigh(scales[:, None] * gram * scales)
        values, axes = values[-rank:], axes[:, -rank:]
        there = values > 1e-12 * values[-1].clamp(min=torch.finfo(torch.float64).tiny)  # fewer directions than the rank asks for
        found = scales[:, None] * axes * torch.where(there, values.clamp(min=1e-300).rsqrt(), torch.zeros_like(values))
        explained = (gram @ found).square().sum(1)
        objective = float((importance * ((1 - explained).abs() + 1e-7).sqrt()).sum())
        if objective > objectives[-1] - 1e-12 * abs(objective):
            break
        coefficients = found
        objectives.append(objective)
    return units.mT, coefficients, objectives[1:]


RULES: dict[str, Rule] = {
    "mean": mean,
    "median": coordinate_median,
    "trimmed_mean": trimmed_mean,
    "geometric_median": geometric_median,
    "krum": krum,
    "multi_krum": multi_krum,
    "centred_clipping": centred_clipping,
    "cva": centred_average,
    "flag": partial(flag, form="normalised"),
}
"""The rules by name; each with its defaults, :func:`flag` in the form that no worker's size can sway."""


def mixing(before: Tensor, after: Tensor) -> tuple[float, float]:
    r"""How well a rule brought honest workers together: :math:`(\alpha, \lambda)` of its reduction.

    Args:
        before: (h, d), honest vectors before it.
        after: (h, d), after it.

    Returns:
        :math:`\alpha`, the variance after it (mean squared distance to their mean) as a part of the one before; and :math:`\lambda`, the squared
        distance of the two means as a part of it.
    """
    spread = (before - before.mean(0)).square().sum(1).mean()
    left = (after - after.mean(0)).square().sum(1).mean()
    drift = (after.mean(0) - before.mean(0)).square().sum()
    return float(left / spread), float(drift / spread)


def checked(vectors: Tensor, faulty: int) -> int:
    """The number of workers."""
    require(vectors.ndim == 2 and len(vectors) >= 1 and vectors.is_floating_point(), "vectors must be (workers, dimensions) of floats", tuple(vectors.shape))
    require(isinstance(faulty, int) and 0 <= 2 * faulty < len(vectors), f"faulty must be an int >= 0, below half of the {len(vectors)} workers", faulty)
    return len(vectors)


def distances_between(vectors: Tensor) -> Tensor:
    """(n, n) Euclidean distances; not by inner products, which lose small ones far from the origin."""
    return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
