"""One question with one number for an answer (which learning rate?), put to an Optuna study: ask for a value, tell what trying it gave, take the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from components.validation import require
from sweeps.logs import quiet
from sweeps.samplers import mixed_seed

Floats = NDArray[np.float64]
CANDIDATES = 401
LENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)
NOISES = (1e-4, 1e-2, 1e-1, 0.5)
FAR = 5.0
"""How many spreads above the best a diverged value counts to the model: as 1e6 it would drown the differences of all others."""


class GaussianProcess:
    r"""Of one variable in [0, 1], with a Matérn kernel (:math:`\nu = 5/2`), length and noise by maximum likelihood over a small grid.

    Far quicker than a general one for the dozen points of a search, which happens while training waits: under a millisecond.

    Source:
        Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, eqs. 2.25, 2.26, 2.30 and 4.17.
    """

    def __init__(self, x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> None:
        self.x, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        self.mean, self.scale = float(values.mean()), float(values.std()) or 1.0
        targets = (values - self.mean) / self.scale
        best = -math.inf
        for length in LENGTHS:
            kernel = matern(self.x, self.x, length)
            for noise in NOISES:
                factor = np.linalg.cholesky(kernel + (noise + 1e-9) * np.eye(self.x.size))
                weights = np.linalg.solve(factor.T, np.linalg.solve(factor, targets))
                likelihood = -0.5 * float(targets @ weights) - float(np.log(np.diag(factor)).sum())
                if likelihood > best:
                    best, self.length, self.noise, self._factor, self._weights = likelihood, length, noise, factor, weights

    def posterior(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the function at ``x``, in the values' units."""
        cross = matern(self.x, np.asarray(x, dtype=np.float64), self.length)
        half = np.linalg.solve(self._factor, cross)
        variance = np.maximum(1.0 - (half**2).sum(0), 0.0)
        return self.mean + self.scale * (cross.T @ self._weights), self.scale * np.sqrt(variance)


def matern(left: Floats, right: Floats, length: float) -> Floats:
    r"""The Matérn kernel with :math:`\nu = 5/2` and variance 1."""
    r = math.sqrt(5.0) * np.abs(left[:, None] - right[None, :]) / length
    return np.asarray((1 + r + r**2 / 3) * np.exp(-r))


class LowerConfidenceBound(BaseSampler):
    r"""Proposes the value with the least :math:`\mu(x) - \kappa\,\sigma(x)` under a :class:`GaussianProcess` on the value's logarithm.

    Args:
        kappa: how much the unknown attracts; AutoLRS's 1000 is nearly pure exploration, 1 to 3 is usual.
        first: shares of the (logarithmic) range at which to begin; by default one that is drawn at random, as AutoLRS does.
        seed: of what is drawn.
        diverged: what a value that diverged counts as; ``None``: a little worse than the others (:data:`FAR`).
    """

    def __init__(self, kappa: float, *, first: Sequence[float] = (), seed: int = 0, diverged: float | None = None) -> None:
        require(kappa >= 0, "kappa must be >= 0", kappa)
        self.kappa, self.first, self.seed, self.diverged = kappa, tuple(first), seed, diverged

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> float:
        assert isinstance(param_distribution, FloatDistribution)
        scale = (math.log, math.exp) if param_distribution.log else (float, float)
        low, high = scale[0](param_distribution.low), scale[0](param_distribution.high)
        told = [t for t in study.trials if "outcome" in t.user_attrs]
        positions = np.array([(scale[0](t.params[param_name]) - low) / (high - low) for t in told])
        value = scale[1](low + self._share(positions, self._counted([t.user_attrs["outcome"] for t in told]), trial.number) * (high - low))
        return float(min(max(value, param_distribution.low), param_distribution.high))

    def _counted(self, outcomes: Sequence[float]) -> Floats:
        values = np.array(outcomes, dtype=np.float64)
        fine = np.isfinite(values)
        if self.diverged is not None or not fine.any():
            return np.asarray(np.where(fine, values, self.diverged or 1.0))
        best = values[fine].min()
        return np.asarray(np.where(fine, values, best + FAR * max(float(values[fine].std()), 0.1 * abs(best), 1e-6)))

    def _share(self, x: Floats, y: Floats, number: int) -> float:
        if number < len(self.first):
            return self.first[number]
        if not x.size:
            return float(np.random.default_rng(mixed_seed(self.seed, number)).random())
        grid = np.linspace(0, 1, CANDIDATES)
        mean, deviation = GaussianProcess(x, y).posterior(grid)
        tried = np.abs(grid[:, None] - x[None, :]).min(1) < 0.5 / (CANDIDATES - 1)  # the same value again tells nothing new
        return float(grid[int(np.argmin(np.where(tried, np.inf, mean - self.kappa * deviation)))])


class RateSearch:
    """Ask, try, tell; the best value that was tried is the answer.

    Args:
        name: of the study.
        low, high: the range, > 0 when ``log``; equal ends leave nothing to search, and are asked for all the same.
        sampler: what proposes.
        log: whether the logarithm is what is searched.
        parameter: what the number is called in the study.

    Raises:
        ValueError: the range is upside down, or not above 0.
    """

    def __init__(self, name: str, low: float, high: float, sampler: BaseSampler, *, log: bool = True, parameter: str = "lr") -> None:
        require(math.isfinite(low) and math.isfinite(high) and (low > 0 or not log), f"the range of {parameter} must be finite and above 0", [low, high])
        require(low <= high, f"the range of {parameter} must go from the lower to the higher end", [low, high])
        self.parameter = parameter
        self.range = FloatDistribution(low, high, log=log)
        with quiet():
            self.study = optuna.create_study(study_name=name, sampler=sampler)
        self._asked: optuna.trial.Trial | None = None

    def ask(self, value: float | None = None) -> float:
        """The next value to try; ``value``: one of one's own (it is moved into the range)."""
        if value is not None:
            self.study.enqueue_trial({self.parameter: min(max(value, self.range.low), self.range.high)})
        self._asked = self.study.ask({self.parameter: self.range})
        return float(self._asked.params[self.parameter])

    def tell(self, outcome: float, **notes: Any) -> None:
        """What trying the value gave, less being better; infinite or not a number: it diverged."""
        require(self._asked is not None, "ask() comes before tell()")
        assert self._asked is not None
        for key, note in {**notes, "outcome": outcome}.items():
            self._asked.set_user_attr(key, note)
        if math.isfinite(outcome):
            self.study.tell(self._asked, outcome)
        else:
            self.study.tell(self._asked, state=TrialState.FAIL)
        self._asked = None

    def outcomes(self) -> dict[float, float]:
        """Value -> outcome of every value that did not diverge."""
        told = [t for t in self.study.trials if t.state == TrialState.COMPLETE]
        return {float(t.params[self.parameter]): float(t.user_attrs["outcome"]) for t in told}

    @property
    def told(self) -> list[float]:
        """Every outcome that was told, in order; infinite or not a number for what diverged."""
        return [float(t.user_attrs["outcome"]) for t in self.study.trials if "outcome" in t.user_attrs]

    @property
    def best(self) -> float | None:
        """The value with the least outcome; None if all diverged."""
        outcomes = self.outcomes()
        return min(outcomes, key=lambda value: outcomes[value]) if outcomes else None


__all__ = ["GaussianProcess", "LowerConfidenceBound", "RateSearch", "matern"]
