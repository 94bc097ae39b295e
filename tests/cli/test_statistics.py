"""Statistics of paired groups: against scipy and published numbers, and where there is nothing to compute."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from losskit_cli.statistics import PAIRED, WELCH, compare_groups, compare_with, hedges_g, holm, summarise

# Student's sleep data (1908), hours gained by ten patients under two drugs: t = -4.0621, df = 9, p = 0.002833, interval -2.4598858 to -0.7001142
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def over_seeds(values: list[float], first: int = 0) -> dict[int, float]:
    return {first + seed: value for seed, value in enumerate(values)}


class TestSummary:
    def test_the_interval_is_scipys(self) -> None:
        found = summarise(FIRST)
        low, high = stats.t.interval(0.95, len(FIRST) - 1, np.mean(FIRST), stats.sem(FIRST))
        assert (found.n, found.mean, found.std) == (10, pytest.approx(np.mean(FIRST)), pytest.approx(np.std(FIRST, ddof=1)))
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
        narrower = summarise(FIRST, confidence=0.5)
        assert found.low is not None and narrower.low is not None and narrower.low > found.low

    def test_intervals_cover_the_mean_as_often_as_they_say(self) -> None:
        samples = np.random.default_rng(0).normal(3.0, 2.0, (2000, 4))
        covered = [s.low <= 3.0 <= s.high for s in map(summarise, samples.tolist()) if s.low is not None and s.high is not None]
        assert len(covered) == 2000 and np.mean(covered) == pytest.approx(0.95, abs=0.015)  # three standard errors

    def test_one_value_has_no_interval(self) -> None:
        found = summarise([0.5])
        assert (found.n, found.mean, found.std, found.low, found.high) == (1, 0.5, None, None, None)

    def test_equal_values_have_an_interval_without_width(self) -> None:
        found = summarise([0.1, 0.1, 0.1])
        assert (found.mean, found.std) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-16))
        assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)

    def test_what_is_not_finite_is_counted_and_left_out(self) -> None:
        found = summarise([1.0, math.nan, 3.0, math.inf])
        assert (found.n, found.mean, found.nonfinite) == (2, 2.0, 2)
        nothing = summarise([math.nan])
        assert (nothing.n, nothing.mean, nothing.std, nothing.low, nothing.nonfinite) == (0, None, None, None, 1)
        assert summarise([]).n == 0


class TestDifference:
    def test_students_own_example(self) -> None:
        found = compare_with(over_seeds(FIRST), over_seeds(SECOND))
        assert (found.n, found.test, found.why_not) == (10, PAIRED, None)
        assert found.difference == pytest.approx(-1.58)
        assert (found.low, found.high) == (pytest.approx(-2.4598858), pytest.approx(-0.7001142))
        assert found.p == pytest.approx(0.002833, rel=1e-3)
        # d_z = t / sqrt(n) = -1.2846, times J(9) = 0.9139...
        assert found.effect == pytest.approx(-1.2846 * 0.91387, rel=1e-3)

    def test_keys_pair_whatever_their_order(self) -> None:
        shuffled = dict(sorted(over_seeds(SECOND).items(), key=lambda item: -item[0]))
        assert compare_with(over_seeds(FIRST), shuffled) == compare_with(over_seeds(FIRST), over_seeds(SECOND))

    def test_only_what_both_have_pairs(self) -> None:
        found = compare_with(over_seeds(FIRST[:4]), {**over_seeds(SECOND[:3]), 77: 100.0})
        assert (found.n, found.test) == (3, PAIRED)
        assert found.difference == pytest.approx(np.mean(np.subtract(FIRST[:3], SECOND[:3])))

    def test_without_pairs_it_is_welchs(self) -> None:
        found = compare_with(over_seeds(FIRST), over_seeds(SECOND, first=100))
        expected = stats.ttest_ind(FIRST, SECOND, equal_var=False)
        assert (found.n, found.test) == (20, WELCH)
        assert (found.p, found.low) == (pytest.approx(expected.pvalue), pytest.approx(expected.confidence_interval(0.95).low))
        pooled = math.sqrt((np.var(FIRST, ddof=1) + np.var(SECOND, ddof=1)) / 2)
        assert found.effect == pytest.approx((1 - 3 / (4 * 18 - 1)) * found.difference / pooled, rel=1e-3)  # Hedges' own approximation of J

    def test_a_pair_with_a_nan_is_no_pair(self) -> None:
        found = compare_with({0: 1.0, 1: math.nan, 2: 2.5}, {0: 0.5, 1: 0.5, 2: 1.0})
        assert (found.n, found.difference) == (2, 1.0)

    def test_equal_values_are_equal(self) -> None:
        found = compare_with(over_seeds([1.0, 2.0, 3.0]), over_seeds([1.0, 2.0, 3.0]))
        assert (found.difference, found.low, found.high, found.p, found.effect) == (0.0, 0.0, 0.0, 1.0, 0.0)
        assert compare_with(over_seeds([2.0, 2.0]), over_seeds([2.0, 2.0], first=10)).p == 1.0

    @pytest.mark.parametrize("first", [0, 10])
    def test_a_difference_without_spread_is_not_tested(self, first: int) -> None:
        found = compare_with(over_seeds([0.9, 0.9, 0.9]), over_seeds([0.8, 0.8, 0.8], first=first))
        assert found.difference == pytest.approx(0.1) and found.p is None and found.effect is None
        assert found.why_not is not None and "nothing to measure" in found.why_not

    def test_rounding_is_no_spread(self) -> None:
        found = compare_with(over_seeds([0.1 + 0.2, 1.2, 2.2]), over_seeds([0.2, 1.1, 2.1]))  # differences of 0.1 that are not the same to the last bit
        assert found.p is None and found.difference == pytest.approx(0.1)

    @pytest.mark.parametrize(
        ("group", "reference", "difference", "says"),
        [
            ({0: 2.0}, {0: 1.0}, 1.0, "two pairs"),
            ({0: 2.0}, {1: 1.0}, 1.0, "two values on either side"),
            ({0: 2.0, 1: 4.0}, {1: 1.0}, 3.0, "two pairs"),
            ({0: math.nan}, {0: 1.0}, None, "no finite value"),
            ({}, {0: 1.0}, None, "no finite value"),
        ],
    )
    def test_too_few_values_are_said_to_be(self, group: dict[int, float], reference: dict[int, float], difference: float | None, says: str) -> None:
        found = compare_with(group, reference)
        assert (found.difference, found.low, found.p, found.effect, found.test) == (difference, None, None, None, None)
        assert found.why_not is not None and says in found.why_not


class TestGroups:
    def test_each_against_the_reference_and_corrected_over_all(self) -> None:
        rng = np.random.default_rng(1)
        groups = [over_seeds((rng.normal(0, 1, 8) + shift).tolist()) for shift in (0.0, 3.0, 0.1)]
        found = compare_groups(groups, reference=0)
        assert found[0] is None
        p = [d.p for d in found if d is not None and d.p is not None]
        assert len(p) == 2 and p[0] < p[1]
        assert [d.p_corrected for d in found if d is not None] == [pytest.approx(2 * p[0]), pytest.approx(max(2 * p[0], p[1]))]

    def test_what_was_not_tested_does_not_count(self) -> None:
        found = compare_groups([over_seeds([1.0, 2.0]), over_seeds([1.5, 2.7]), {0: 5.0}])
        assert found[1] is not None and found[1].p_corrected == found[1].p is not None
        assert found[2] is not None and found[2].p_corrected is None

    def test_a_reference_that_is_not_there(self) -> None:
        with pytest.raises(ValueError, match=r"reference must be one of the 1 groups \(0 to 0\), but got 1"):
            compare_groups([{0: 1.0}], reference=1)

    @pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
    def test_a_confidence_is_between_0_and_1(self, confidence: float) -> None:
        with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\)"):
            summarise([1.0], confidence)
        with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\)"):
            compare_with({0: 1.0}, {0: 1.0}, confidence)


def test_holms_own_steps() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([None]) == [None] and holm([]) == []


def test_hedges_correction_makes_the_estimate_unbiased() -> None:
    """Over many samples of four differences with mean 0.5 and deviation 1, the mean of g is 0.5; without the correction it is 0.69."""
    samples = np.random.default_rng(2).normal(0.5, 1.0, (20000, 4))
    found = [hedges_g(float(m), float(s), 3) for m, s in zip(samples.mean(1), samples.std(1, ddof=1), strict=True)]
    assert np.mean([g for g in found if g is not None]) == pytest.approx(0.5, abs=0.03)
    assert hedges_g(1.0, 0.0, 5) is None and hedges_g(1.0, 1.0, 1) is None


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = ("numpy", "scipy", "statsmodels", "matplotlib", "optuna", "plotly", "torch", "mlflow")
    code = f"import sys, losskit_cli.compare, losskit_cli.report, losskit_cli.dashboard; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
