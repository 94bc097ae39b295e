"""Samplers: which point comes next. What ``conf/sweep/sampler`` says, from which Optuna's sampler is made for one trial at a time.

One seed gives the same points whoever runs the trials, as far as the algorithm allows: a sampler is made anew for every trial and seeded
with the sweep's seed and the trial's number. Random and quasi-random points then depend on nothing else. The others also look at the
results so far, so with one worker they repeat exactly, and with several as far as trials end in the same order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from components.validation import require
from sweeps.constraints import AlgorithmError, Constraint

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from sweeps.space import SearchSpace


@dataclass(frozen=True)
class Wanted:
    """What a sampler is made for: one trial of a sweep.

    Args:
        seed: the sweep's.
        trial_number: the trial's.
        space: the search space.
        directions: of the objectives, ``minimize`` or ``maximize`` each.
        constraints: that trials are to keep.
    """

    seed: int
    trial_number: int
    space: SearchSpace
    directions: tuple[str, ...]
    constraints: tuple[Constraint, ...]

    @property
    def trial_seed(self) -> int:
        """A seed of the trial's own; those of another sweep's seed have nothing to do with it (seed + number would: 0 + 1 = 1 + 0)."""
        return mixed_seed(self.seed, self.trial_number)


class Sampler:
    """What proposes the parameters of the next trial: the base of ``conf/sweep/sampler``.

    Attributes:
        exhaustive: whether it takes every point of the space, once; these are known beforehand (:meth:`order`), and nothing is drawn.
        most_objectives: how many it can optimise at once; ``None``: any number.
        heeds_constraints: whether it prefers trials that keep the constraints, or pays no regard to results at all.
    """

    exhaustive: ClassVar[bool] = False
    most_objectives: ClassVar[int | None] = None
    heeds_constraints: ClassVar[bool] = True

    def check(self, space: SearchSpace, directions: Sequence[str], constraints: Sequence[Constraint]) -> None:
        """Whether it can search this.

        Raises:
            AlgorithmError: it cannot, or a package is missing; what can.
        """
        name = type(self).__name__.lower()
        if self.most_objectives is not None and len(directions) > self.most_objectives:
            raise AlgorithmError(f"sweep/sampler={name} takes one objective, but there are {len(directions)}: sweep/sampler=nsga2, tpe or gp take several")
        if constraints and not self.heeds_constraints:
            raise AlgorithmError(f"sweep/sampler={name} does not heed constraints: sweep/sampler=tpe, gp or nsga2 do")
        if self.exhaustive and not space.finite:
            endless = next(p for p in space.parameters if p.size is None)
            raise AlgorithmError(f"sweep/sampler={name} tries every point, but {endless} has no end of values: choices or range(…), or sweep/sampler=tpe")

    def build(self, wanted: Wanted) -> BaseSampler:
        """Optuna's sampler for one trial."""
        raise NotImplementedError

    def order(self, points: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
        """The points of an exhaustive search in the order in which they are taken."""
        return list(points)


@dataclass(frozen=True)
class Tpe(Sampler):
    """Tree-structured Parzen estimator: models good and bad trials' parameters apart, and proposes what is likelier among the good.

    Takes any space, several objectives, constraints, and goes on well while other trials still run.

    Args:
        n_startup_trials: random ones at first.
        n_ei_candidates: drawn for each proposal; the most promising is taken.
        multivariate: parameters modelled together; by default with one objective, and with several each by itself.
        group: parameters that always apply together modelled together, where some are conditional (experimental in Optuna).
        constant_liar: running trials count as bad, so that workers keep apart.

    Source:
        Bergstra et al., Algorithms for Hyper-Parameter Optimization, NIPS 2011; Watanabe 2023, arXiv:2304.11127.
    """

    n_startup_trials: int = 10
    n_ei_candidates: int = 24
    multivariate: bool | None = None
    group: bool = False
    constant_liar: bool = True

    def __post_init__(self) -> None:
        require(self.n_startup_trials >= 0, "n_startup_trials must be >= 0", self.n_startup_trials)
        require(self.n_ei_candidates >= 1, "n_ei_candidates must be >= 1", self.n_ei_candidates)
        require(not (self.group and self.multivariate is False), "group=true models parameters together: leave multivariate out, or multivariate=true")

    def build(self, wanted: Wanted) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(
            n_startup_trials=self.n_startup_trials,
            n_ei_candidates=self.n_ei_candidates,
            multivariate=True if self.group else self.multivariate,
            group=self.group,
            constant_liar=self.constant_liar,
            seed=wanted.trial_seed,
        )


@dataclass(frozen=True)
class Gp(Sampler):
    """Bayesian optimisation by a Gaussian process with a Matérn kernel: fewest trials for a few numeric parameters, seconds a proposal for many trials.

    Takes several objectives and constraints. Conditional parameters are drawn at random.

    Args:
        n_startup_trials: random ones at first.
        deterministic_objective: the same parameters always give the same value; otherwise noise is fitted.

    Source:
        Rasmussen and Williams 2006; log expected improvement, Ament et al. 2023, arXiv:2310.20708.
    """

    n_startup_trials: int = 10
    deterministic_objective: bool = False

    def __post_init__(self) -> None:
        require(self.n_startup_trials >= 1, "n_startup_trials must be >= 1", self.n_startup_trials)

    def check(self, space: SearchSpace, directions: Sequence[str], constraints: Sequence[Constraint]) -> None:
        super().check(space, directions, constraints)
        _need("torch", "gp")
        _need("scipy", "gp")

    def build(self, wanted: Wanted) -> BaseSampler:
        from optuna.samplers import GPSampler, RandomSampler

        return GPSampler(
            seed=wanted.trial_seed,
            independent_sampler=RandomSampler(seed=wanted.trial_seed),
            n_startup_trials=self.n_startup_trials,
            deterministic_objective=self.deterministic_objective,
            warn_independent_sampling=False,
        )


@dataclass(frozen=True)
class Cmaes(Sampler):
    """Covariance matrix adaptation evolution strategy: for continuous spaces and many trials.

    Needs the package ``cmaes``, one objective, and numbers: choices and conditional parameters are drawn at random.

    Args:
        n_startup_trials: random ones at first.
        sigma0: the first standard deviation, as a fraction of each range scaled to [0, 1]; by default 1/6.
        popsize: trials of a generation; by default 4 + ⌊3 ln d⌋ for d parameters.
        with_margin: keeps whole numbers and steps from being stuck at one value (Hamano et al. 2022).
        lr_adapt: learning rates adapted to noisy and multimodal objectives (Nomura et al. 2023).
        use_separable_cma: a diagonal covariance, for very many parameters (Ros and Hansen 2008).

    Source:
        Hansen and Ostermeier 2001, doi:10.1162/106365601750190398.
    """

    most_objectives: ClassVar[int | None] = 1
    heeds_constraints: ClassVar[bool] = False

    n_startup_trials: int = 1
    sigma0: float | None = None
    popsize: int | None = None
    with_margin: bool = False
    lr_adapt: bool = False
    use_separable_cma: bool = False

    def __post_init__(self) -> None:
        require(self.n_startup_trials >= 1, "n_startup_trials must be >= 1", self.n_startup_trials)
        require(self.sigma0 is None or self.sigma0 > 0, "sigma0 must be > 0", self.sigma0)
        require(self.popsize is None or self.popsize >= 2, "popsize must be >= 2", self.popsize)
        require(self.with_margin + self.lr_adapt + self.use_separable_cma <= 1, "one of with_margin, lr_adapt and use_separable_cma can be true")

    def check(self, space: SearchSpace, directions: Sequence[str], constraints: Sequence[Constraint]) -> None:
        super().check(space, directions, constraints)
        _need("cmaes", "cmaes")
        from optuna.distributions import CategoricalDistribution

        if all(isinstance(d, CategoricalDistribution) or d.single() for d in space.distributions.values()):
            raise AlgorithmError("sweep/sampler=cmaes searches numbers, and this space has only choices: sweep/sampler=tpe takes both")

    def build(self, wanted: Wanted) -> BaseSampler:
        from optuna.samplers import CmaEsSampler, RandomSampler

        return CmaEsSampler(
            seed=mixed_seed(wanted.seed, 0) % 2**31,  # Optuna adds the trial's number itself
            independent_sampler=RandomSampler(seed=wanted.trial_seed),
            n_startup_trials=self.n_startup_trials,
            sigma0=self.sigma0,
            popsize=self.popsize,
            with_margin=self.with_margin,
            lr_adapt=self.lr_adapt,
            use_separable_cma=self.use_separable_cma,
            warn_independent_sampling=False,
        )


@dataclass(frozen=True)
class Qmc(Sampler):
    """Quasi-random points of a low-discrepancy sequence: as random search, but without gaps and clusters. Looks at no result.

    Any number of workers draw the same points. Sobol's are most even when the number of trials is a power of 2.

    Args:
        qmc_type: the sequence.
        scramble: shifted at random by the seed; without it every seed gives the same points, the first of them a corner.

    Source:
        Bousquet et al. 2017, arXiv:1706.03200; Sobol' 1967, Halton 1964, Owen 1995 as in scipy.stats.qmc.
    """

    qmc_type: Literal["sobol", "halton"] = "sobol"
    scramble: bool = True

    def build(self, wanted: Wanted) -> BaseSampler:
        from sweeps.quasirandom import QuasiRandomSampler

        return QuasiRandomSampler(
            wanted.space.distributions, number=wanted.trial_number, sequence=self.qmc_type, scramble=self.scramble, seed=mixed_seed(wanted.seed, 0)
        )


@dataclass(frozen=True)
class Random(Sampler):
    """Independent random points: the baseline, hard to beat in many dimensions, and the same for any number of workers. Looks at no result.

    Source:
        Bergstra and Bengio, JMLR 2012.
    """

    def build(self, wanted: Wanted) -> BaseSampler:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=wanted.trial_seed)


@dataclass(frozen=True)
class Grid(Random):
    """Every point of a finite space, in the order of the overrides: the first changes slowest, as in Hydra's multirun.

    Source:
        Hydra's basic sweeper.
    """

    exhaustive: ClassVar[bool] = True


@dataclass(frozen=True)
class BruteForce(Random):
    """Every point of a finite space in random order, so that a search which is stopped early has seen a fair part of it.

    Source:
        optuna.samplers.BruteForceSampler.
    """

    exhaustive: ClassVar[bool] = True

    def order(self, points: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
        """Shuffled, the same way for one seed."""
        return random.Random(mixed_seed(seed, 0)).sample(list(points), len(points))


@dataclass(frozen=True)
class Nsga2(Sampler):
    """Genetic search for several objectives: ranks trials by who dominates whom, and keeps them apart along the front.

    Takes constraints: a trial that keeps them comes before any that does not.

    Args:
        population_size: trials of a generation.
        mutation_prob: of each parameter; by default 1 / number of parameters.
        crossover_prob: that a trial has two parents.
        swapping_prob: of each parameter, to come from the second parent.

    Source:
        Deb et al. 2002, doi:10.1109/4235.996017.
    """

    population_size: int = 50
    mutation_prob: float | None = None
    crossover_prob: float = 0.9
    swapping_prob: float = 0.5

    def __post_init__(self) -> None:
        require(self.population_size >= 2, "population_size must be >= 2", self.population_size)
        for name in ("mutation_prob", "crossover_prob", "swapping_prob"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"{name} must be in [0, 1]", value)

    def build(self, wanted: Wanted) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(
            population_size=self.population_size,
            mutation_prob=self.mutation_prob,
            crossover_prob=self.crossover_prob,
            swapping_prob=self.swapping_prob,
            seed=wanted.trial_seed,
        )


def mixed_seed(seed: int, number: int) -> int:
    """One seed of two numbers, in [0, 2³²)."""
    import numpy as np

    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _need(package: str, sampler: str) -> None:
    if find_spec(package) is None:
        raise AlgorithmError(f"sweep/sampler={sampler} needs the package {package}: pip install {package}")


__all__ = ["BruteForce", "Cmaes", "Gp", "Grid", "Nsga2", "Qmc", "Random", "Sampler", "Tpe", "Wanted", "mixed_seed"]
