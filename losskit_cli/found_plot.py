"""``losskit plot schedule=RUN``: the learning rate that a run had, what it tried on the way, and the loss under it."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.schedules.compose import straight
from losskit_cli.compare import json_ready
from losskit_cli.errors import UsageError
from losskit_cli.found_schedule import FoundSchedule, RunSource

if TYPE_CHECKING:
    from losskit_cli.plot import Panel

POINTS = 400
LOSSES = ("train/loss", "val/loss")


def plot_run(source: RunSource, overrides: Sequence[str], *, output: Path | None = None, json: bool = False) -> None:
    """Draw the learning rate of ``source`` beside a cosine and a WSD schedule of the same peak, and its losses.

    Raises:
        UsageError: overrides beside the run, which is drawn as it was; a run of unknown length; a file that cannot be written.
    """
    others = [text for text in overrides if text.lstrip("+").partition("=")[0] != "schedule"]
    if others:
        raise UsageError(f"{others[0]}: a run's schedule is drawn as it was; to change one, write an option: losskit plot schedule=wsd {others[0]}")
    rates = source.rates()
    x, panels = _panels(source, rates)
    file = output or Path(f"schedule-{source.name}.png")
    _draw(source, rates, file)
    if json:
        shown: dict[str, Any] = {"kind": "run", "name": source.name, "run_id": source.run.run_id, "file": str(file), "x_label": "step", "x": x}
        shown["panels"] = [{"label": panel.label, "curves": panel.curves} for panel in panels]
        shown["found"] = json_ready(asdict(source.found)) if source.found is not None else None
        sys.stdout.write(dumps(shown) + "\n")
        return
    from losskit_cli.plot import blocks

    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    sys.stdout.write(f"{_title(source)}\n\n")
    for panel in panels:
        sys.stdout.write(blocks(x, panel, "step", width) + "\n\n")
    if source.found is not None:
        sys.stdout.write("".join(f"{line}\n" for line in stages(source.found)) + "\n")
    sys.stdout.write(f"{file}\n")


def _panels(source: RunSource, rates: Sequence[float]) -> tuple[list[float], list[Panel]]:
    """The rate and the losses at some hundred steps."""
    from losskit_cli.plot import Panel

    total = len(rates)
    steps = sorted({round(i * (total - 1) / min(max(total - 1, 1), POINTS)) for i in range(min(max(total - 1, 1), POINTS) + 1)})
    curves = {source.name: [rates[step] for step in steps]}
    curves |= {name: [values[step] for step in steps] for name, values in usual(rates).items()}
    panels = [Panel("learning rate", curves)]
    logged = {name: [(step, value) for step, value in source.curves.get(name, []) if math.isfinite(value)] for name in LOSSES}
    losses = {name: [straight([s for s, _ in points], [v for _, v in points], step) for step in steps] for name, points in logged.items() if points}
    if losses:
        panels.append(Panel("loss", losses))
    return [float(step) for step in steps], panels


def usual(rates: Sequence[float]) -> dict[str, list[float]]:
    """A cosine without, and a WSD schedule with a warm-up of a twentieth, with the peak of ``rates``."""
    from components.schedules import WSD, Cosine

    peak, total = max(rates), len(rates)
    return {"cosine": [peak * v for v in Cosine(total_steps=total).values()], "wsd": [peak * v for v in WSD(warmup=0.05, total_steps=total).values()]}


def stages(found: FoundSchedule) -> list[str]:
    """What was searched, in a line for each stage."""
    lines = []
    for stage in found.stages:
        diverged = sum(probe.diverged for probe in stage.probes)
        tried = f"{len(stage.probes)} probe{'' if len(stage.probes) == 1 else 's'}" + (f", {diverged} diverged" if diverged else "")
        chosen = "not decided yet" if stage.chosen is None else f"{stage.chosen:.4g}"
        lines.append(f"steps {stage.start:,}–{stage.end:,}  {stage.question}: {chosen}  ({tried}; {stage.why})")
    return lines


def _title(source: RunSource) -> str:
    found = source.found
    if found is None:
        return f"learning rate of {source.name}"
    state = "" if found.finished else f", {found.trained_steps:,} of them trained"
    return f"learning rate found by {source.name} ({found.method}): {found.total_steps:,} steps{state}, {found.explored_steps:,} more in probes"


def _draw(source: RunSource, rates: Sequence[float], file: Path) -> None:
    from matplotlib.figure import Figure

    from losskit_cli.plot import save_figure

    found = source.found
    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name, values in usual(rates).items():
        above.plot(range(len(values)), values, linewidth=1.2, color="#777777", linestyle="--" if name == "cosine" else ":", label=f"{name}, same peak")
    above.plot(range(len(rates)), rates, linewidth=2.2, color="#0072B2", label=source.name)
    for name, colour in zip(LOSSES, ("#0072B2", "#D55E00"), strict=True):
        points = source.curves.get(name, [])
        if points:
            below.plot([s for s, _ in points], [v for _, v in points], linewidth=1.6, color=colour, label=name, marker="." if len(points) < 60 else "")
    told: set[str] = set()
    for stage in found.stages if found else []:
        for probe in stage.probes:
            style: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.7, "color": "#CC3311" if probe.diverged else "#009E73"}
            above.plot([stage.start + step for step in probe.at], [found.lr * factor for factor in probe.factors] if found else [], **style)
            kind = "diverging probes" if probe.diverged else "probes"
            below.plot([stage.start + step for step in probe.steps_seen], probe.losses, label=None if kind in told else kind, **style)
            told.add(kind)
            if probe.forecast is not None:
                below.plot([stage.start + step for step in probe.forecast[0]], probe.forecast[1], linestyle=":", **style)
    seen = sorted(value for name in LOSSES for _, value in source.curves.get(name, []) if math.isfinite(value))
    if seen:
        top = seen[min(int(0.98 * len(seen)), len(seen) - 1)]
        below.set_ylim(seen[0] - 0.05 * (top - seen[0]) - 1e-9, top + 0.15 * (top - seen[0]) + 1e-9)
    above.set(ylabel="learning rate", ylim=(-0.05 * max(rates), 2.5 * max(rates) if told else 1.1 * max(rates)))  # probes of far higher rates are cut off
    below.set(ylabel="loss", xlabel="step")
    for axes in (above, below):
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(_title(source), fontsize=9)
    save_figure(figure, file)


__all__ = ["plot_run", "stages", "usual"]
