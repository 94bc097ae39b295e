"""Statistics of groups of values that belong together in pairs: intervals, paired tests, effect sizes, corrected for how many were made.

A group is what was measured under one choice (``loss=focal``), a value what one seed of it gave. Two groups that ran over the same seeds share what the
seed decides (initial weights, order of the samples), so their difference is taken seed by seed: that is far more telling than two means side by side.

numpy, scipy and statsmodels are imported when something is computed: importing this module costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

CONFIDENCE = 0.95
PAIRED = "paired t-test"
WELCH = "Welch's t-test"
NEGLIGIBLE = 1e-12  # a spread below this share of the values themselves is rounding, not spread


@dataclass(frozen=True)
class Summary:
    """What the values of one group say about their mean.

    Attributes:
        n: how many finite values there are.
        mean: their mean; ``None`` without any.
        std: sample standard deviation (divisor n − 1); ``None`` for fewer than two.
        low, high: ends of the interval that covers the mean with 95 % confidence; ``None`` for fewer than two.
        nonfinite: how many further values are NaN or infinite; they are in none of the above.
    """

    n: int
    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    nonfinite: int


@dataclass(frozen=True)
class Difference:
    """A group against the reference group: group − reference.

    Attributes:
        n: pairs of values; without pairs, the values of both groups together.
        difference: of the means over these values; ``None`` if one side has no value.
        low, high: ends of its 95 % interval.
        p: two-sided p-value of "the means are equal".
        p_corrected: Holm's, over all comparisons with this reference; see :func:`holm`.
        effect: Hedges' g, the difference in units of its own standard deviation (paired) or of the values' (not paired); see :func:`hedges_g`.
        test: ``"paired t-test"`` or ``"Welch's t-test"``; ``None`` where neither can be made.
        why_not: in words, why there is no test; ``None`` where there is one.
    """

    n: int
    difference: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    effect: float | None = None
    test: str | None = None
    why_not: str | None = None


def summarise(values: Sequence[float], confidence: float = CONFIDENCE) -> Summary:
    r"""Mean and spread of a group, and the interval of its mean.

    .. math:: \bar x \pm t_{n-1,\,(1 + c) / 2}\; s / \sqrt n, \qquad s^2 = \frac{1}{n-1} \sum_i (x_i - \bar x)^2

    Args:
        values: one per seed. NaN and infinities are counted and left out: no mean can be taken over them.
        confidence: c, the share of such intervals that cover the true mean if the values are normal. Default: 0.95.

    Raises:
        ValueError: a confidence outside (0, 1).
    """
    _require_confidence(confidence)
    finite = [float(v) for v in values if math.isfinite(v)]
    nonfinite = len(values) - len(finite)
    if not finite:
        return Summary(0, None, None, None, None, nonfinite)
    mean = math.fsum(finite) / len(finite)
    if len(finite) == 1:
        return Summary(1, mean, None, None, None, nonfinite)
    std = _std(finite)
    half = _t_quantile(len(finite) - 1, confidence) * std / math.sqrt(len(finite))
    return Summary(len(finite), mean, std, mean - half, mean + half, nonfinite)


def compare_with(group: Mapping[Key, float], reference: Mapping[Key, float], confidence: float = CONFIDENCE) -> Difference:
    """The difference of two groups with its interval, test and effect size; not yet corrected for further comparisons.

    Values whose keys are in both groups are pairs. With two pairs or more the test is the paired t-test over them (``scipy.stats.ttest_rel``), else
    Welch's t-test over all values (``scipy.stats.ttest_ind(equal_var=False)``), which needs two values on either side.

    Args:
        group, reference: key (the seed) -> value. A NaN or an infinity takes its pair out.
        confidence: of the interval. Default: 0.95.

    Raises:
        ValueError: a confidence outside (0, 1).
    """
    _require_confidence(confidence)
    ours = {key: float(v) for key, v in group.items() if math.isfinite(v)}
    theirs = {key: float(v) for key, v in reference.items() if math.isfinite(v)}
    if not ours or not theirs:
        return Difference(0, None, why_not="no finite value on one side")
    common = [key for key in ours if key in theirs]
    if len(common) >= 2:
        return _paired([ours[key] for key in common], [theirs[key] for key in common], confidence)
    if len(ours) >= 2 and len(theirs) >= 2:
        return _welch([*ours.values()], [*theirs.values()], confidence)
    if common:
        return Difference(1, ours[common[0]] - theirs[common[0]], why_not="a test needs two pairs")
    return Difference(len(ours) + len(theirs), _mean([*ours.values()]) - _mean([*theirs.values()]), why_not="a test needs two values on either side")


def compare_groups(groups: Sequence[Mapping[Hashable, float]], reference: int = 0, confidence: float = CONFIDENCE) -> list[Difference | None]:
    """Every group against one of them, with p-values corrected for how many comparisons that is.

    Args:
        groups: each key (the seed) -> value.
        reference: the number of the group that the others are compared with; its own place in the answer is ``None``. Default: the first.
        confidence: of the intervals, each for itself. Default: 0.95.

    Raises:
        ValueError: no such group, or a confidence outside (0, 1).
    """
    if not 0 <= reference < len(groups):
        raise ValueError(f"reference must be one of the {len(groups)} groups (0 to {len(groups) - 1}), but got {reference}")
    found = [None if i == reference else compare_with(group, groups[reference], confidence) for i, group in enumerate(groups)]
    corrected = iter(holm([d.p for d in found if d is not None]))
    return [None if d is None else replace(d, p_corrected=next(corrected)) for d in found]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    r"""p-values corrected so that the chance of even one false "they differ" among all of them stays at the level that is asked of each.

    With :math:`p_{(1)} \le \dots \le p_{(m)}`: :math:`\tilde p_{(i)} = \min(1, \max_{j \le i} (m - j + 1)\, p_{(j)})` (``statsmodels``' ``multipletests``).

    Args:
        p_values: ``None`` where there was no test: stays ``None`` and does not count.

    Source: Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, Scandinavian Journal of Statistics 6(2), 1979.
    """
    tested = [p for p in p_values if p is not None]
    if len(tested) > 1:
        from statsmodels.stats.multitest import multipletests

        tested = [float(p) for p in multipletests(tested, method="holm")[1]]
    corrected = iter(tested)
    return [None if p is None else next(corrected) for p in p_values]


def hedges_g(difference: float, std: float, degrees: int) -> float | None:
    r"""A difference in units of a standard deviation, freed of the bias that small samples have.

    .. math:: g = J(\nu)\, \frac{d}{s}, \qquad J(\nu) = \frac{\Gamma(\nu / 2)}{\sqrt{\nu / 2}\; \Gamma((\nu - 1) / 2)}

    For pairs d is the mean of the paired differences, s their standard deviation and ν = n − 1 (g of the paired difference, :math:`g_z`); without pairs s is
    the pooled standard deviation and ν = n₁ + n₂ − 2. By custom 0.2 is small, 0.5 medium, 0.8 large; the paired one grows as the pairs agree more.

    Args:
        difference, std: d and s, in the metric's unit.
        degrees: ν, the degrees of freedom of ``std``.

    Returns:
        g, with the sign of the difference; ``None`` where there is no spread to measure it by, or for ν < 2, where J is 0.

    Source: Hedges, *Distribution Theory for Glass's Estimator of Effect Size and Related Estimators*, Journal of Educational Statistics 6(2), 1981; for pairs:
    Lakens, *Calculating and reporting effect sizes to facilitate cumulative science*, Frontiers in Psychology 4:863, 2013 (d_z).
    """
    if degrees < 2 or std <= 0:
        return None
    j = math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2)) / math.sqrt(degrees / 2)
    return j * difference / std


def _paired(ours: Sequence[float], theirs: Sequence[float], confidence: float) -> Difference:
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    n, mean = len(differences), _mean(differences)
    if _constant(differences, [*ours, *theirs]):
        return _without_spread(n, mean, "every pair shows the same difference: nothing to measure it by", PAIRED)
    from scipy import stats

    result = stats.ttest_rel(ours, theirs)
    interval = result.confidence_interval(confidence)
    effect = hedges_g(mean, _std(differences), n - 1)
    return Difference(n, mean, float(interval.low), float(interval.high), float(result.pvalue), None, effect, PAIRED)


def _welch(ours: Sequence[float], theirs: Sequence[float], confidence: float) -> Difference:
    n, mean = len(ours) + len(theirs), _mean(ours) - _mean(theirs)
    if _constant(ours, ours) and _constant(theirs, theirs):
        return _without_spread(n, mean, "no spread in either group: nothing to measure the difference by", WELCH)
    from scipy import stats

    result = stats.ttest_ind(ours, theirs, equal_var=False)
    interval = result.confidence_interval(confidence)
    pooled = math.sqrt(((len(ours) - 1) * _std(ours) ** 2 + (len(theirs) - 1) * _std(theirs) ** 2) / (n - 2))
    return Difference(n, mean, float(interval.low), float(interval.high), float(result.pvalue), None, hedges_g(mean, pooled, n - 2), WELCH)


def _without_spread(n: int, mean: float, why_not: str, test: str) -> Difference:
    """Where nothing varies t is 0/0 or infinite. Equal throughout is as equal as can be; anything else is for the reader to judge, not for a test."""
    if mean == 0:
        return Difference(n, 0.0, 0.0, 0.0, 1.0, None, 0.0, test)
    return Difference(n, mean, mean, mean, why_not=why_not)


def _constant(values: Sequence[float], scale: Sequence[float]) -> bool:
    """Whether the values differ by no more than rounding does at the scale of what they were computed from."""
    return max(values) - min(values) <= NEGLIGIBLE * max(abs(v) for v in scale)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _std(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _t_quantile(degrees: int, confidence: float) -> float:
    from scipy.special import stdtrit  # the distribution objects of scipy.stats take half a second to import

    return float(stdtrit(degrees, (1 + confidence) / 2))


def _require_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), but got {confidence}")


__all__ = ["CONFIDENCE", "PAIRED", "WELCH", "Difference", "Summary", "compare_groups", "compare_with", "hedges_g", "holm", "summarise"]
