"""The picture of a claim: every seed's runs side by side, and the differences to the baseline with their interval."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from losskit_cli.claims import BASELINE
from losskit_cli.group_plot import BLUE, GREY, INK
from losskit_cli.plot import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from losskit_cli.reproduce import Outcome

COLOURS = {"reproduced": "#00795c", "not seen here": "#a06a00", "the other way": "#b3372f", "no verdict": GREY}


def draw_claim(outcome: Outcome, file: Path) -> None:
    """Draw ``outcome`` as a PNG.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    others = [arm for arm in outcome.values if arm != BASELINE]
    figure = Figure(figsize=(9.0, 2.9 + 0.25 * len(others)), layout="constrained")
    values, differences = figure.subplots(1, 2, width_ratios=[1.0, 1.2])
    _values(values, outcome, [BASELINE, *others])
    _differences(differences, outcome, others)
    figure.suptitle(f"{outcome.claim.name}: {outcome.verdict}", fontsize=11, color=COLOURS[outcome.verdict], x=0.01, ha="left", fontweight="bold")
    save_figure(figure, file)


def _values(axes: Axes, outcome: Outcome, arms: list[str]) -> None:
    """One line a seed, from arm to arm."""
    for seed in outcome.claim.seeds:
        axes.plot(range(len(arms)), [outcome.values[arm].get(seed, math.nan) for arm in arms], "-o", color=BLUE, alpha=0.45, markersize=4, linewidth=1)
    means = [outcome.summaries[arm].mean for arm in arms]
    axes.plot(range(len(arms)), [math.nan if mean is None else mean for mean in means], "_", color=INK, markersize=26, markeredgewidth=2)
    axes.set_xticks(range(len(arms)), arms, rotation=0 if len(arms) < 4 else 20)
    axes.set_xlim(-0.4, len(arms) - 0.6)
    axes.set_ylabel(outcome.claim.metric, color=INK)
    _plain(axes, "y")


def _differences(axes: Axes, outcome: Outcome, arms: list[str]) -> None:
    """One row an arm: each seed's difference, the mean and its interval; the baseline is the line at 0."""
    baseline = outcome.values[BASELINE]
    for row, arm in enumerate(arms):
        found = outcome.differences[arm]
        each = [value - baseline[seed] for seed, value in outcome.values[arm].items() if seed in baseline]
        axes.plot(each, [row + 0.18] * len(each), "o", color=BLUE, alpha=0.45, markersize=4)
        if found.low is not None and found.high is not None and found.difference is not None:
            axes.plot([found.low, found.high], [row, row], "-", color=INK, linewidth=2)
            axes.plot([found.difference], [row], "D", color=INK, markersize=6)
    axes.axvline(0.0, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    if outcome.claim.margin:
        margin = outcome.claim.margin if not outcome.claim.higher_is_better else -outcome.claim.margin
        axes.axvline(margin, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    towards = "better →" if outcome.claim.higher_is_better else "← better"
    axes.set_xlabel(f"difference to the baseline, by seed; mean and 95 % interval   {towards}", color=INK, fontsize=8.5)
    _plain(axes, "x")


def _plain(axes: Axes, grid: str) -> None:
    axes.grid(axis=grid, alpha=0.25)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelcolor=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


__all__ = ["draw_claim"]
