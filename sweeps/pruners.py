"""Pruners: which trials are not worth finishing. What ``conf/sweep/pruner`` says, from which Optuna's pruner is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from components.validation import require

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


class Pruner:
    """What ends trials that promise nothing: the base of ``conf/sweep/pruner``. A step is one report: a validation, or, with ``over_seeds``, a seed.

    Attributes:
        prunes: whether it ends any trial at all.
        over_seeds: whether it compares a trial's seeds with the best trial's, one report a seed, rather than validations.
    """

    prunes: ClassVar[bool] = True
    over_seeds: ClassVar[bool] = False

    def build(self) -> BasePruner:
        """Optuna's pruner."""
        raise NotImplementedError


@dataclass(frozen=True)
class NoPruning(Pruner):
    """Every trial is run to its end.

    Source:
        optuna.pruners.NopPruner.
    """

    prunes: ClassVar[bool] = False

    def build(self) -> BasePruner:
        from optuna.pruners import NopPruner

        return NopPruner()


@dataclass(frozen=True)
class Percentile(Pruner):
    """Ends a trial whose best value so far is outside the best ``percentile`` % of the others at the same step.

    Args:
        percentile: of the trials go on, in %.
        n_startup_trials: trials that must be complete before any is ended.
        n_warmup_steps: reports of each trial that end nothing.
        interval_steps: so many reports from one look to the next.
        n_min_trials: trials that must have reported at a step for it to count.

    Source:
        optuna.pruners.PercentilePruner; Golovin et al., Google Vizier, KDD 2017.
    """

    percentile: float = 25.0
    n_startup_trials: int = 5
    n_warmup_steps: int = 0
    interval_steps: int = 1
    n_min_trials: int = 1

    def __post_init__(self) -> None:
        require(0 <= self.percentile <= 100, "percentile must be in [0, 100]", self.percentile)
        require(self.n_startup_trials >= 0, "n_startup_trials must be >= 0", self.n_startup_trials)
        require(self.n_warmup_steps >= 0, "n_warmup_steps must be >= 0", self.n_warmup_steps)
        require(self.interval_steps >= 1, "interval_steps must be >= 1", self.interval_steps)
        require(self.n_min_trials >= 1, "n_min_trials must be >= 1", self.n_min_trials)

    def build(self) -> BasePruner:
        from optuna.pruners import PercentilePruner

        return PercentilePruner(self.percentile, self.n_startup_trials, self.n_warmup_steps, self.interval_steps, n_min_trials=self.n_min_trials)


@dataclass(frozen=True)
class Median(Pruner):
    """Ends a trial whose best value so far is worse than the median of the others at the same step.

    Args:
        n_startup_trials: trials that must be complete before any is ended.
        n_warmup_steps: reports of each trial that end nothing.
        interval_steps: so many reports from one look to the next.
        n_min_trials: trials that must have reported at a step for it to count.

    Source:
        optuna.pruners.MedianPruner; Golovin et al., Google Vizier, KDD 2017.
    """

    n_startup_trials: int = 5
    n_warmup_steps: int = 0
    interval_steps: int = 1
    n_min_trials: int = 1

    def __post_init__(self) -> None:
        Percentile(50.0, self.n_startup_trials, self.n_warmup_steps, self.interval_steps, self.n_min_trials)

    def build(self) -> BasePruner:
        from optuna.pruners import MedianPruner

        return MedianPruner(self.n_startup_trials, self.n_warmup_steps, self.interval_steps, n_min_trials=self.n_min_trials)


@dataclass(frozen=True)
class SuccessiveHalving(Pruner):
    """Asynchronous successive halving: at each rung of reports only the best 1 / ``reduction_factor`` go on to the next.

    Args:
        min_resource: reports of a trial before the first rung; ``auto``: a hundredth of what the first complete trial made.
        reduction_factor: from rung to rung there are so many times as many reports and as many times fewer trials.
        min_early_stopping_rate: the first rung is ``reduction_factor`` to this power times later.
        bootstrap_count: so many trials must have reached a rung before any is ended there.

    Source:
        Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020, arXiv:1810.05934.
    """

    min_resource: int | Literal["auto"] = "auto"
    reduction_factor: int = 4
    min_early_stopping_rate: int = 0
    bootstrap_count: int = 0

    def __post_init__(self) -> None:
        require(self.min_resource == "auto" or int(self.min_resource) >= 1, "min_resource must be auto or >= 1", self.min_resource)
        require(self.reduction_factor >= 2, "reduction_factor must be >= 2", self.reduction_factor)
        require(self.min_early_stopping_rate >= 0, "min_early_stopping_rate must be >= 0", self.min_early_stopping_rate)
        require(self.bootstrap_count >= 0, "bootstrap_count must be >= 0", self.bootstrap_count)
        require(not (self.bootstrap_count and self.min_resource == "auto"), "bootstrap_count needs a min_resource that is a number")

    def build(self) -> BasePruner:
        from optuna.pruners import SuccessiveHalvingPruner

        return SuccessiveHalvingPruner(self.min_resource, self.reduction_factor, self.min_early_stopping_rate, self.bootstrap_count)


@dataclass(frozen=True)
class Hyperband(Pruner):
    """Several successive halvings side by side, from strict to lenient, so that nobody need know how early losers show. TPE models each by itself.

    Args:
        min_resource: reports of a trial before the strictest's first rung.
        max_resource: reports of a trial that is run to its end; ``auto``: of the first complete one.
        reduction_factor: as in successive halving.
        bootstrap_count: so many trials must have reached a rung before any is ended there.

    Source:
        Li et al., Hyperband, JMLR 2018, arXiv:1603.06560; with TPE: Falkner et al., BOHB, 2018, arXiv:1807.01774.
    """

    min_resource: int = 1
    max_resource: int | Literal["auto"] = "auto"
    reduction_factor: int = 3
    bootstrap_count: int = 0

    def __post_init__(self) -> None:
        require(self.min_resource >= 1, "min_resource must be >= 1", self.min_resource)
        require(self.max_resource == "auto" or int(self.max_resource) >= self.min_resource, "max_resource must be auto or >= min_resource", self.max_resource)
        require(self.reduction_factor >= 2, "reduction_factor must be >= 2", self.reduction_factor)
        require(self.bootstrap_count >= 0, "bootstrap_count must be >= 0", self.bootstrap_count)
        require(not (self.bootstrap_count and self.max_resource == "auto"), "bootstrap_count needs a max_resource that is a number")

    def build(self) -> BasePruner:
        from optuna.pruners import HyperbandPruner

        return HyperbandPruner(self.min_resource, self.max_resource, self.reduction_factor, self.bootstrap_count)


@dataclass(frozen=True)
class Patient(Pruner):
    """Leaves a trial alone while it improves, or has within the last reports; then asks another pruner.

    Args:
        patience: reports without an improvement that a trial is granted.
        min_delta: what counts as an improvement.
        wrapped: the other pruner, as a node with a ``_target_``; ``None``: the trial is ended.

    Source:
        optuna.pruners.PatientPruner.
    """

    patience: int = 3
    min_delta: float = 0.0
    wrapped: Pruner | None = None

    def __post_init__(self) -> None:
        require(self.patience >= 0, "patience must be >= 0", self.patience)
        require(self.min_delta >= 0, "min_delta must be >= 0", self.min_delta)
        require(self.wrapped is None or isinstance(self.wrapped, Pruner), "wrapped must be another pruner: {_target_: sweeps.algorithms.Median}")

    def build(self) -> BasePruner:
        from optuna.pruners import PatientPruner

        return PatientPruner(self.wrapped.build() if self.wrapped else None, self.patience, self.min_delta)


@dataclass(frozen=True)
class Wilcoxon(Pruner):
    """Ends a trial over several seeds (``sweep.seeds=…``) once the seeds so far show, paired with the best trial's, that it is worse.

    A signed-rank test after every seed; it needs no steps of training, so seeds are run to their end.

    Args:
        p_threshold: of the test; lower: fewer trials are ended.
        n_startup_steps: seeds of each trial that end nothing.

    Source:
        Wilcoxon 1945, doi:10.2307/3001968; optuna.pruners.WilcoxonPruner.
    """

    over_seeds: ClassVar[bool] = True

    p_threshold: float = 0.1
    n_startup_steps: int = 2

    def __post_init__(self) -> None:
        require(0 <= self.p_threshold <= 1, "p_threshold must be in [0, 1]", self.p_threshold)
        require(self.n_startup_steps >= 0, "n_startup_steps must be >= 0", self.n_startup_steps)

    def build(self) -> BasePruner:
        from optuna.pruners import WilcoxonPruner

        return WilcoxonPruner(p_threshold=self.p_threshold, n_startup_steps=self.n_startup_steps)


__all__ = ["Hyperband", "Median", "NoPruning", "Patient", "Percentile", "Pruner", "SuccessiveHalving", "Wilcoxon"]
