"""Quasi-random search: the points of a low-discrepancy sequence, one for each trial number.

Optuna's own sampler of this kind counts its points in the study, so that workers which ask at once get the same one, and which point a
trial gets depends on who was faster. Here the trial's number says which, so any number of workers draw the same points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

Sequence = Literal["sobol", "halton"]


class QuasiRandomSampler(optuna.samplers.BaseSampler):
    r"""The ``number``-th point of a scrambled sequence :math:`u_0, u_1, \ldots \in [0, 1)^d`, stretched to the space.

    Every parameter of the space has its coordinate whether it applies in a trial or not, so a conditional one disturbs no other.

    Args:
        distributions: the space: Optuna's name -> what it is drawn from.
        number: of the trial.
        sequence: ``sobol`` or ``halton``.
        scramble: random shift and permutation of the digits (Owen 1995), the same for one seed; without it the first point is a corner.
        seed: of the scrambling.

    Source:
        Sobol' 1967 and Halton 1964, as in scipy.stats.qmc.
    """

    def __init__(
        self, distributions: Mapping[str, BaseDistribution], *, number: int, sequence: Sequence = "sobol", scramble: bool = True, seed: int = 0
    ) -> None:
        self.distributions = dict(distributions)
        self.number, self.sequence, self.scramble, self.seed = number, sequence, scramble, seed
        self._other = optuna.samplers.RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, known beforehand: not gathered from earlier trials."""
        return {name: d for name, d in self.distributions.items() if not d.single()}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """The trial's point."""
        if not search_space:
            return {}
        from scipy.stats import qmc

        engine = (qmc.Sobol if self.sequence == "sobol" else qmc.Halton)(len(search_space), scramble=self.scramble, seed=self.seed)
        if self.number:
            engine.fast_forward(self.number)
        point = engine.random(1)[0]
        return {name: stretched(float(u), d) for u, (name, d) in zip(point, search_space.items(), strict=True)}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """A parameter that the space does not have: drawn at random."""
        return self._other.sample_independent(study, trial, param_name, param_distribution)


def stretched(u: float, distribution: BaseDistribution) -> Any:
    """The value at the fraction ``u`` in [0, 1) of a distribution: each choice and each step gets an equal share.

    >>> stretched(0.5, FloatDistribution(1e-4, 1.0, log=True))
    0.01
    """
    d = distribution
    if isinstance(d, CategoricalDistribution):
        return d.choices[int(u * len(d.choices))]
    if isinstance(d, IntDistribution):
        if d.log:  # whole numbers begin half a step below the first and end half a step above the last
            low, high = math.log(d.low - 0.5), math.log(d.high + 0.5)
            return min(max(round(math.exp(low + u * (high - low))), d.low), d.high)
        return d.low + d.step * int(u * ((d.high - d.low) // d.step + 1))
    assert isinstance(d, FloatDistribution)
    if d.log:
        low, high = math.log(d.low), math.log(d.high)
        return min(max(math.exp(low + u * (high - low)), d.low), d.high)
    if d.step is not None:
        return min(d.low + d.step * int(u * (round((d.high - d.low) / d.step) + 1)), d.high)
    return d.low + u * (d.high - d.low)


__all__ = ["QuasiRandomSampler", "stretched"]
