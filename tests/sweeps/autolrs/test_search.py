"""The search for one number: a Gaussian process that agrees with scikit-learn's, and an Optuna study around it."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from sweeps.autolrs.search import GaussianProcess, LowerConfidenceBound, RateSearch, matern


def test_the_kernel_is_scikit_learns() -> None:
    x, y = np.linspace(0, 1, 7), np.linspace(0, 1, 5)
    assert np.abs(matern(x, y, 0.3) - Matern(length_scale=0.3, nu=2.5)(x[:, None], y[:, None])).max() < 1e-12


def test_the_posterior_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    x = rng.random(9)
    y = np.sin(5 * x) + 0.1 * rng.normal(size=9)
    own = GaussianProcess(x, y)
    other = GaussianProcessRegressor(Matern(length_scale=own.length, nu=2.5), alpha=own.noise + 1e-9, optimizer=None)
    other.fit(x[:, None], (y - y.mean()) / y.std())
    grid = np.linspace(0, 1, 50)
    mean, deviation = other.predict(grid[:, None], return_std=True)
    own_mean, own_deviation = own.posterior(grid)
    assert np.abs(own_mean - (y.mean() + y.std() * mean)).max() < 1e-9
    assert np.abs(own_deviation - y.std() * deviation).max() < 1e-7


def search_of(function: object, candidates: int, *, kappa: float = 1.0, low: float = 1e-4, high: float = 1.0, seed: int = 0) -> RateSearch:
    search = RateSearch("s", low, high, LowerConfidenceBound(kappa, seed=seed))
    for _ in range(candidates):
        rate = search.ask()
        search.tell(function(rate))  # type: ignore[operator]
    return search


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_a_valley_in_the_logarithm(seed: int) -> None:
    search = search_of(lambda rate: (math.log10(rate) + 1.7) ** 2, 9, seed=seed)
    assert search.best is not None and abs(math.log10(search.best) + 1.7) < 0.15


def test_much_kappa_spreads_the_candidates_evenly() -> None:
    search = search_of(lambda rate: 0.0 if rate < 1e-3 else 1.0, 9, kappa=1e6)
    shares = np.sort([(math.log10(rate) + 4) / 4 for rate in search.outcomes()])
    assert np.diff(np.concatenate([[0], shares, [1]])).max() < 0.3


def test_no_value_is_asked_for_twice() -> None:
    rates = list(search_of(lambda rate: 1.0, 12, kappa=0.0).outcomes())
    assert len(set(rates)) == 12


def test_the_same_seed_asks_the_same() -> None:
    one, again, other = (list(search_of(lambda rate: rate, 5, seed=seed).outcomes()) for seed in (3, 3, 4))
    assert one == again and one[0] != other[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_diverged_value_counts_as_worse_but_does_not_drown_the_others(seed: int) -> None:
    search = search_of(lambda rate: math.inf if rate > 0.1 else (math.log10(rate) + 2) ** 2, 10, seed=seed)
    assert search.best is not None and abs(math.log10(search.best) + 2) < 0.3
    failed = [trial for trial in search.study.trials if trial.state.name == "FAIL"]
    assert all(trial.params["lr"] > 0.1 and trial.user_attrs["outcome"] == math.inf for trial in failed)


def test_what_diverges_counts_as_it_is_told_to() -> None:
    sampler = LowerConfidenceBound(1.0, diverged=1e6)
    assert sampler._counted([1.0, math.inf]).tolist() == [1.0, 1e6]
    assert LowerConfidenceBound(1.0)._counted([1.0, 2.0, math.nan]).tolist() == [1.0, 2.0, 1.0 + 5 * 0.5]


def test_if_all_diverge_there_is_no_best() -> None:
    search = search_of(lambda rate: math.nan, 3)
    assert search.best is None and search.outcomes() == {}


def test_one_rate_leaves_nothing_to_search() -> None:
    search = search_of(lambda rate: rate, 2, low=0.1, high=0.1)
    assert list(search.outcomes()) == [0.1]


@pytest.mark.parametrize(("low", "high", "message"), [(1.0, 0.1, "from the lower to the higher"), (0.0, 1.0, "above 0"), (1e-3, math.inf, "finite")])
def test_a_range_that_is_none_is_refused(low: float, high: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RateSearch("s", low, high, LowerConfidenceBound(1.0))


def test_a_value_of_ones_own_is_moved_into_the_range() -> None:
    search = RateSearch("s", 0.1, 1.0, LowerConfidenceBound(1.0))
    assert search.ask(0.5) == 0.5
    search.tell(1.0)
    assert search.ask(7.0) == 1.0


def test_a_decision_takes_milliseconds() -> None:
    search_of(lambda rate: rate, 2)
    began = time.perf_counter()
    search_of(lambda rate: rate, 20)
    assert (time.perf_counter() - began) / 20 < 0.1  # about 4 ms on an idle core
