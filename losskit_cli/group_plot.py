"""The picture of ``losskit compare --group-by … --plot FILE.png``: every value of every group, its mean and 95 % interval, best first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from losskit_cli.errors import UsageError
from losskit_cli.plot import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from losskit_cli.compare import Comparison

BLUE, GREY, INK = "#0072B2", "#6f6f6f", "#222222"
NEAREST, FARTHEST = 0.16, 0.36  # how far below a group's interval its values lie, in rows
MAX_PANELS = 4
MAX_LABEL = 48


def draw_groups(comparison: Comparison, file: Path) -> None:
    """Draw the groups of a comparison, one row each, one panel for each metric that was compared.

    Args:
        comparison: one with a reference group.
        file: a PNG, or what else the file's ending says that matplotlib can write.

    Raises:
        UsageError: nothing finite to draw, more than four metrics, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(c.of for c in comparison.columns if c.of is not None))
    if len(metrics) > MAX_PANELS:
        raise UsageError(f"--plot draws at most {MAX_PANELS} metrics side by side, but got {len(metrics)}")
    for metric in metrics:
        if all(not row[metric] or row[metric]["mean"] is None for row in comparison.rows):
            raise UsageError(f"--plot: no group has a finite {metric}")
    keys = [c.name for c in comparison.columns if c.kind == "param"]
    labels = [_label(row, keys) for row in comparison.rows]
    figure = Figure(figsize=(2.2 + 4.6 * len(metrics), 1.5 + 0.52 * len(labels)), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0], metrics, strict=True):
        _panel(axes, [row[metric] for row in comparison.rows], labels)
        arrow = {"min": "lower is better", "max": "higher is better"}[comparison.direction] if metric == comparison.metric else ""
        axes.set_xlabel(f"{metric} ({arrow})" if arrow else metric, color=INK)
    reference = comparison.reference
    told = f"points: one per {', '.join(reference.over)}; mean ± 95 % interval; dashed: {reference.label}" if reference else ""
    figure.suptitle(told, fontsize=8.5, color=GREY, x=0.01, ha="left")
    save_figure(figure, file)


def _panel(axes: Axes, cells: Sequence[Mapping[str, Any] | None], labels: Sequence[str]) -> None:
    for row, cell in enumerate(cells):
        if not cell or cell["mean"] is None:
            continue
        is_reference = cell["comparison"] is None
        color = INK if is_reference else BLUE
        values = [v for v in cell["values"].values() if math.isfinite(v)]
        axes.plot(values, [row + offset for offset in _offsets(len(values))], "o", color=color, alpha=0.35, markersize=4.5, markeredgewidth=0, zorder=2)
        if cell["low"] is not None:
            axes.plot([cell["low"], cell["high"]], [row, row], color=color, linewidth=2, solid_capstyle="butt", zorder=3)
            axes.plot([cell["low"], cell["high"]], [row, row], "|", color=color, markersize=9, markeredgewidth=2, zorder=3)
        axes.plot([cell["mean"]], [row], "D", color=color, markersize=6.5, markeredgecolor="white", markeredgewidth=0.9, zorder=4)
        if is_reference:
            axes.axvline(cell["mean"], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)  # the best on top
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.tick_params(axis="x", colors=GREY)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.margins(x=0.06)


def _offsets(number: int) -> list[float]:
    """Where the values of a group lie below its interval: spread, so that equal ones can be told apart, and always the same."""
    return [NEAREST + (FARTHEST - NEAREST) * (i / (number - 1) if number > 1 else 0.0) for i in range(number)]


def _label(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    values = [("-" if row[key] is None else str(row[key])) for key in keys]
    text = values[0] if len(keys) == 1 else ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in zip(keys, values, strict=True))
    text = text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…"
    return f"{text}\nn = {row['n']}".replace("$", r"\$")  # a dollar sign would begin a formula


__all__ = ["draw_groups"]
