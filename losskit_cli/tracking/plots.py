"""The two pictures that every run gets: its learning rate and its losses. Drawn by the writer, so matplotlib is never imported by training."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

Curve = Sequence[tuple[int, float]]


def is_learning_rate(key: str) -> bool:
    return key == "lr" or key.startswith(("lr-", "lr/"))


def is_loss(key: str) -> bool:
    return key == "loss" or key.endswith("/loss")


def worth_drawing(key: str) -> bool:
    return is_learning_rate(key) or is_loss(key)


def preload() -> None:
    """Draw a picture for nobody, while there is nothing to send: imports and fonts take most of the first one's time."""
    _draw({"loss": [(0, 1.0), (1, 100.0)]}, "loss", io.BytesIO())


def draw(curves: Mapping[str, Curve], folder: Path) -> list[Path]:
    """Draw ``lr.png`` and ``loss.png`` from the curves that are there; the paths of what was drawn."""
    chosen = {
        "lr.png": ("learning rate", {k: c for k, c in curves.items() if is_learning_rate(k)}),
        "loss.png": ("loss", {k: c for k, c in curves.items() if is_loss(k) and not k.startswith("test/")}),
    }
    drawn = []
    for name, (label, group) in chosen.items():
        finite = {k: [(s, v) for s, v in curve if math.isfinite(v)] for k, curve in group.items()}
        finite = {k: sorted(curve) for k, curve in finite.items() if curve}
        if finite:
            folder.mkdir(parents=True, exist_ok=True)
            _draw(finite, label, folder / name)
            drawn.append(folder / name)
    return drawn


def _draw(curves: Mapping[str, Curve], label: str, target: Path | io.BytesIO) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("Agg")

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, curve in sorted(curves.items()):
        steps, values = zip(*curve, strict=True)
        axes.plot(steps, values, label=key, marker="." if len(steps) <= 30 else None, linewidth=1.2)
    heights = [v for curve in curves.values() for _, v in curve]
    if label == "loss" and min(heights) > 0 and max(heights) > 50 * min(heights):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=110, format="png")


__all__ = ["draw", "preload", "worth_drawing"]
