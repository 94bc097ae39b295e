"""``losskit plot``: a schedule over the run, or a loss and its gradient, as a PNG and as a small picture in the terminal."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from losskit_cli.catalogue import Catalogue
from losskit_cli.errors import LosskitError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from losskit_cli.found_schedule import RunSource

KINDS: dict[str, frozenset[str]] = {
    "classification": frozenset({"logits", "target", "target_multi_hot", "index", "lifetime_value"}),
    "regression": frozenset({"prediction", "target", "log_variance", "quantiles", "measurement_residual"}),
    "equation": frozenset({"residual", "initial_residual", "boundary_residual"}),
    "ranking": frozenset({"positive_scores", "negative_scores"}),
    "density": frozenset({"log_density", "noise_log_density", "log_noise", "noise_log_noise"}),
    "embedding": frozenset({"embeddings", "target", "step"}),
    "pairs": frozenset({"projections_1", "projections_2", "target"}),
}
"""What can be drawn: a loss that needs nothing but these quantities, of one kind."""
POINTS = 161
LIFETIME_VALUE = 200.0  # of the customer whose targeting is drawn
FACTS = {
    "num_classes": 2,
    "embedding_dim": 3,
    "num_outputs": 2,
    "class_counts": [500, 500],
    "class_names": ["other", "target"],
    "num_samples": 1000,
    "num_targets": 1,
    "vocab_size": 2,
    "batch_size": 1,
    "steps_per_epoch": 100,
}


@dataclass
class Panel:
    """One set of axes: curves by name, the first the one asked about."""

    label: str
    curves: dict[str, list[float]]


@dataclass
class Picture:
    kind: str
    name: str
    title: str
    x_label: str
    x: list[float]
    panels: list[Panel] = field(default_factory=list)


def run_plot(
    overrides: Sequence[str],
    *,
    output: Path | None = None,
    steps: int = 1000,
    config_dirs: Sequence[Path | str] = (),
    json: bool = False,
) -> None:
    """Draw what ``overrides`` choose: ``schedule=wsd schedule.decay=0.3``, ``loss=focal loss.gamma=3``.

    Args:
        overrides: Hydra overrides; the first that is about a schedule or a loss says which of the two is drawn.
        output: the PNG; default ``<group>-<option>.png`` in the working directory.
        steps: steps of the run that a schedule is drawn over.
        config_dirs: the user's config directories.
        json: print the points and the file's name as one object.

    Raises:
        UsageError: neither a schedule nor a loss; a loss that one number does not describe; what composing refuses.
    """
    group = _what(overrides)
    if steps < 2:
        raise UsageError(f"--steps must be at least 2, but got {steps}")
    run = _run_named(overrides, Catalogue.default(config_dirs)) if group == "schedule" else None
    if run is not None:
        from losskit_cli.found_plot import plot_run

        plot_run(run, overrides, output=output, json=json)
        return
    from losskit_cli.compose import Composer
    from losskit_cli.found_schedule import SEARCHES, with_replay

    composed = Composer(config_dirs).compose(list(overrides))
    config = with_replay(composed.resolved())
    name, node = str(composed.choices.get(group, group)), config.get(group)
    if not node:
        raise UsageError(f"{group}={name} is nothing to draw")
    if str(node.get("_target_")).startswith(SEARCHES):
        raise UsageError(f"{group}={name} is found while a run trains: losskit plot schedule=RUN draws what RUN has found")
    make = maker(config.get("allow_targets") or (), f"{group}={name}")
    if group == "schedule":
        picture = schedule_picture(make(group, node, {"total_steps": steps}), name, steps)
    else:
        _require_plottable(Catalogue.default(config_dirs), name)
        picture = loss_picture(make(group, _loss_node(node), {**FACTS, "total_steps": steps}), name, _inputs(node))
    file = output or Path(f"{group}-{name}.png")
    save(picture, file)
    if json:
        points = {"kind": picture.kind, "name": name, "file": str(file), "x_label": picture.x_label, "x": picture.x}
        sys.stdout.write(dumps(points | {"panels": [{"label": p.label, "curves": p.curves} for p in picture.panels]}) + "\n")
        return
    size = shutil.get_terminal_size((80, 24))
    sys.stdout.write(f"{picture.title}\n\n")
    for panel in picture.panels:
        sys.stdout.write(blocks(picture.x, panel, picture.x_label, min(size.columns, 100)) + "\n\n")
    sys.stdout.write(f"{file}\n")


# -- what to draw ----------------------------------------------------------------------------------------------------------------
def schedule_picture(schedule: Callable[[int], float], name: str, total_steps: int) -> Picture:
    """The factor against the step, beside a cosine without warm-up."""
    x = sorted({round(i * total_steps / min(total_steps, 400)) for i in range(min(total_steps, 400) + 1)})
    curves = {name: [float(schedule(step)) for step in x]}
    curves.setdefault("cosine", [0.5 * (1 + math.cos(math.pi * step / total_steps)) for step in x])
    return Picture("schedule", name, f"schedule={name}, {total_steps} steps", "step", [float(s) for s in x], [Panel("factor on the base value", curves)])


def loss_picture(loss: nn.Module, name: str, inputs: Mapping[str, str] | None = None) -> Picture:
    """The loss and its derivative against the one number that says most of it.

    Classification: two classes with logits ``(m/2, -m/2)``, the first being right, so ``m`` is the margin (a loss over single labels: one label with
    logit ``m``); beside cross-entropy. Regression: target 0 (or 1, where the loss has no value at 0), unit predicted variance, all quantiles alike, against
    the error (of a box of side 1: how far it is shifted); beside the squared error. An equation's residual at one point, all others 0: the same. Ranking:
    one wanted candidate and one other, against the lead of the first; beside the logistic loss (BPR). Density: one sample and one of noise, likewise.
    Metric learning: two samples of one class and two of another, or two pairs, in turn the two apart and each together, against the cosine of the one
    pair, or the classes, that moves.

    Args:
        loss: the loss, of any reduction.
        name: how it is called.
        inputs: parameter -> quantity, where its parameters have names of their own.
    """
    import torch
    from torch.nn import functional as F

    names = {parameter: (inputs or {}).get(parameter, parameter) for parameter in _required(loss)}
    kind = _kind(names.values())
    if kind in ("embedding", "pairs"):
        return _cosine_picture(loss, name, names)
    if hasattr(loss, "reduction"):
        setattr(loss, "reduction", "none")  # noqa: B010  (any module's, not only our own Loss)
    pictures: dict[str, tuple[Sequence[Callable[[Tensor], Mapping[str, Any]]], str, str]] = {
        "classification": (_class_forms(), "margin: logit of the right class − logit of the other", "cross-entropy"),
        "ranking": ([_two_candidates], "lead: score of the wanted candidate − score of the other", "logistic (BPR)"),
        "density": ([_two_densities], "lead: log density of the sample − of the noise", "logistic"),
        "equation": ([_one_residual], "residual of the equation at one point", "squared error"),
    }
    forms, against, usual = pictures[kind] if kind in pictures else (_error_forms(loss), "error: prediction − target", "squared error")
    end = 4 if usual == "squared error" else 6
    x = torch.linspace(-end, end, POINTS)
    point = x.double()
    baseline, other = (point**2, 2 * point) if usual == "squared error" else (F.softplus(-point), -torch.sigmoid(-point))
    values, slopes = _curve(loss, names, x, forms, name)
    panels = [Panel("loss", {name: values, usual: baseline.tolist()}), Panel("gradient", {name: slopes, usual: other.tolist()})]
    return Picture("loss", name, f"loss={name}", against, x.tolist(), panels)


def _cosine_picture(loss: nn.Module, name: str, names: Mapping[str, str]) -> Picture:
    """Two samples of each of two classes, or two pairs: one pair moves apart, or one class towards the other."""
    import torch

    torch.manual_seed(0)  # what such a loss has learnt of the classes, it has not
    of_classes = "embeddings" in names.values()
    x = torch.linspace(-0.98, 0.98, POINTS)

    def form(moving: int) -> Callable[[Tensor], dict[str, Tensor]]:
        def quantities(cosine: Tensor) -> dict[str, Any]:
            sine, zero, one = (1 - cosine.square()).sqrt(), torch.zeros_like(cosine), torch.ones_like(cosine)
            first, moved, away = torch.stack([one, zero, zero]), torch.stack([cosine, sine, zero]), torch.stack([zero, zero, one])
            rows = [first, moved, away, away] if moving == 1 else [first, first, moved, moved]
            samples = torch.stack(rows)
            if of_classes:
                return {"embeddings": samples, "target": torch.tensor([0, 0, 1, 1]), "step": 0}
            return {"projections_1": samples[::2], "projections_2": samples[1::2], "target": torch.tensor([0, 1])}

        return quantities

    one, shown = ("class", "two classes of two samples each") if of_classes else ("pair", "two pairs")
    curves = {text: _curve(loss, names, x, [form(moving)], name) for moving, text in ((1, f"of the same {one}"), (2, f"of the other {one}"))}
    panels = [Panel(label, {text: curve[i] for text, curve in curves.items()}) for i, label in enumerate(("loss", "gradient"))]
    return Picture("loss", name, f"loss={name}: {shown}", "cosine to the samples …", x.tolist(), panels)


def _curve(
    loss: nn.Module, names: Mapping[str, str], x: Tensor, forms: Sequence[Callable[[Tensor], Mapping[str, Any]]], name: str
) -> tuple[list[float], list[float]]:
    """Value and slope at each point, one at a time; the first form of input that the loss takes is used."""
    import torch

    problems: list[str] = []
    for form in forms:
        if not set(names.values()) <= form(x[0]).keys():
            continue
        try:
            values, slopes = [], []
            for point in x:
                at = point.clone().requires_grad_()
                quantities = form(at)
                value = loss(**{parameter: quantities[quantity] for parameter, quantity in names.items()}).mean()
                slope = torch.autograd.grad(value, at, allow_unused=True)[0] if value.requires_grad else None
                values.append(float(value.detach()))
                slopes.append(0.0 if slope is None else float(slope))
        except (ValueError, IndexError, RuntimeError) as error:  # not the shapes that it takes: try the next form
            problems.append(str(error))
            continue
        if not all(map(math.isfinite, values)):
            problems.append("it is not finite there")
        elif not any(slopes):
            problems.append("it does not change there")
        else:
            return values, slopes
    raise UsageError(f"loss={name} cannot be drawn against one number: {problems[0]}")


def _two_candidates(lead: Tensor) -> dict[str, Tensor]:
    return {"positive_scores": (lead / 2).reshape(1), "negative_scores": (-lead / 2).reshape(1, 1)}


def _two_densities(lead: Tensor) -> dict[str, Tensor]:
    sample, noise, even = (lead / 2).reshape(1), (-lead / 2).reshape(1, 1), lead.new_zeros(1)
    return {"log_density": sample, "log_noise": even, "noise_log_density": noise, "noise_log_noise": even.reshape(1, 1)}


def _one_residual(residual: Tensor) -> dict[str, Tensor]:
    zero = residual.new_zeros(1, 1)
    return {"residual": residual.reshape(1, 1), "initial_residual": zero, "boundary_residual": zero}


def _class_forms() -> list[Callable[[Tensor], dict[str, Tensor]]]:
    """One label with its logit (the other one is 0: what a sigmoid compares with); two classes, alone, at one place or pixel, or one of them at 0."""
    import torch

    def one_label(margin: Tensor) -> dict[str, Tensor]:
        label = {"target_multi_hot": torch.ones(1, 1), "index": torch.zeros(1, dtype=torch.long), "lifetime_value": torch.full((1,), LIFETIME_VALUE)}
        return {"logits": margin.reshape(1, 1), **label}

    def beside_zero(margin: Tensor) -> dict[str, Tensor]:
        return {"logits": torch.stack([margin, torch.zeros_like(margin)]).reshape(1, 2), "target": torch.zeros(1, dtype=torch.long)}

    def form(*extra: int) -> Callable[[Tensor], dict[str, Tensor]]:
        def quantities(margin: Tensor) -> dict[str, Tensor]:
            logits = torch.stack([margin / 2, -margin / 2]).reshape(1, 2, *extra)
            return {
                "logits": logits,
                "target": torch.zeros((1, *extra), dtype=torch.long),
                "target_multi_hot": torch.tensor([1.0, 0.0]).reshape(1, 2, *extra),
                "index": torch.zeros(1, dtype=torch.long),
            }

        return quantities

    return [one_label, form(), form(1), form(1, 1), beside_zero]


def _error_forms(loss: nn.Module) -> list[Callable[[Tensor], dict[str, Tensor]]]:
    import torch

    levels = len(getattr(loss, "levels", [0]))

    def form(target: float) -> Callable[[Tensor], dict[str, Tensor]]:
        def quantities(error: Tensor) -> dict[str, Tensor]:
            prediction = (error + target).reshape(1, 1)
            return {
                "prediction": prediction,
                "target": torch.full((1, 1), target),
                "log_variance": torch.zeros(1, 1),
                "quantiles": prediction.unsqueeze(-1).expand(1, 1, levels),
                "measurement_residual": prediction,
            }

        return quantities

    def shifted_box(error: Tensor) -> dict[str, Tensor]:
        across = error.new_tensor([[1.0, 0.0, 1.0, 0.0]])
        box = error.new_tensor([[0.0, 0.0, 1.0, 1.0]])
        return {"prediction": box + error * across, "target": box}

    return [form(0.0), form(1.0), shifted_box]


def _required(loss: nn.Module) -> list[str]:
    from components.binding import requirements

    return requirements(loss.forward)[0]


def _what(overrides: Iterable[str]) -> str:
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0].partition(".")[0]
        if key in ("schedule", "loss"):
            return key
    raise UsageError("say what to draw: losskit plot schedule=wsd schedule.decay=0.3, or losskit plot loss=focal")


def _run_named(overrides: Iterable[str], catalogue: Catalogue) -> RunSource | None:
    """The run that ``schedule=…`` names where it names no option; an option's name wins.

    Raises:
        UsageError: it names neither.
    """
    name = next((text.partition("=")[2].strip("'\"") for text in overrides if text.lstrip("+").partition("=")[0] == "schedule"), "")
    options = catalogue.option_names("schedule")
    if not name or name in options or "," in name or "(" in name or name == "null":
        return None
    from losskit_cli.found_schedule import no_such_schedule, source_at
    from losskit_cli.runs import find_run

    try:
        run = find_run(name)
    except LosskitError as error:
        raise no_such_schedule(name, options, error) from error
    return source_at(run)


def _require_plottable(catalogue: Catalogue, name: str) -> None:
    needs = catalogue.option("loss", name).needs()
    if needs and _kind(needs) is None:
        others = [option.name for option in catalogue.options("loss") if _kind(option.needs())]
        raise UsageError(
            f"loss={name} needs {', '.join(needs)}: there is no one number to draw it against. What can be drawn needs logits, a prediction or embeddings "
            f"and a target, scores of candidates, pairs, densities or residuals: {', '.join(others)}"
        )


def _kind(needs: Iterable[str]) -> str | None:
    """Which of :data:`KINDS` offers all that is needed."""
    return next((kind for kind, offered in KINDS.items() if set(needs) and set(needs) <= offered), None)


def _inputs(node: Mapping[str, Any]) -> dict[str, str]:
    return dict(node.get("inputs") or {})


def _loss_node(node: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in node.items() if k != "inputs" and not (k == "weight" and isinstance(v, str))}


def maker(allowed: Iterable[str], named: str) -> Callable[[str, Mapping[str, Any], Mapping[str, Any]], Any]:
    """Builds a component from its node, with its target and parameters checked and facts filled in."""
    from hydra.utils import instantiate

    from losskit_cli.check import HYDRA_KEYS, Targets, checked_arguments, parameters_of, target_nodes

    targets = Targets(allowed)

    def make(key: str, node: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
        for where, inner in target_nodes(dict(node), key):
            targets.resolve(inner["_target_"], where)
        target = targets.resolve(node["_target_"], key)
        values = {k: v for k, v in node.items() if k not in HYDRA_KEYS}
        parameters, _ = parameters_of(target)
        values |= {k: v for k, v in facts.items() if k in parameters and k not in values}
        values = checked_arguments(key, target, values)
        try:
            nested = {k: instantiate(v, _convert_="all") if isinstance(v, dict | list) and list(target_nodes(v)) else v for k, v in values.items()}
            return target(**nested)
        except ValueError as error:
            raise UsageError(f"{named}: {error}") from error

    return make


# -- pictures ---------------------------------------------------------------------------------------------------------------------
def save(picture: Picture, file: Path) -> None:
    """Write the picture as a PNG (or what else the file's ending says that matplotlib can write)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(picture.panels) ** 0.7, 4.0), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(picture.panels), squeeze=False)[0], picture.panels, strict=True):
        for number, (name, y) in enumerate(panel.curves.items()):
            style: dict[str, Any] = {"linewidth": 2.2, "color": "#0072B2"} if number == 0 else {"linewidth": 1.4, "color": "#777777", "linestyle": "--"}
            axes.plot(picture.x, y, label=name, **style)
        axes.set_xlabel(picture.x_label)
        axes.set_ylabel(panel.label)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.suptitle(picture.title)
    save_figure(figure, file)


def save_figure(figure: Figure, file: Path) -> None:
    """Write a matplotlib figure, its directory made if need be.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:  # ValueError: an ending that matplotlib does not know
        raise UsageError(f"cannot write {file}: {error}") from error


def blocks(x: Sequence[float], panel: Panel, x_label: str, width: int = 80, height: int = 12) -> str:
    """The panel in braille dots: the first curve solid, the others dotted.

    Each character holds 2 x 4 dots, so a picture 60 columns wide has 120 points across.
    """
    finite = [v for curve in panel.curves.values() for v in curve if math.isfinite(v)]
    low, high = min(finite), max(finite)
    high = high if high > low else low + 1
    labels = [f"{0 if abs(v) < (high - low) * 1e-6 else v:.3g}" for v in (high, (low + high) / 2, low)]
    margin = max(map(len, labels)) + 1
    columns = max(width - margin - 2, 10)
    cells = [[0] * columns for _ in range(height)]
    bits = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a braille character: column, row

    for number, curve in enumerate(panel.curves.values()):
        previous: int | None = None
        for across in range(columns * 2):
            value = _at(x, curve, x[0] + (x[-1] - x[0]) * across / (columns * 2 - 1))
            row = round((high - value) / (high - low) * (height * 4 - 1))
            reached = range(min(row, previous), max(row, previous) + 1) if previous is not None and number == 0 else (row,)
            previous = row
            if number and across % 4 > 0:
                continue
            for dot in reached:
                cells[dot // 4][across // 2] |= bits[across % 2][dot % 4]
    at = {0: labels[0], height // 2: labels[1], height - 1: labels[2]}
    lines = [f"{at.get(row, ''):>{margin}} ┤{''.join(chr(0x2800 + cell) for cell in line)}" for row, line in enumerate(cells)]
    ends = f"{x[0]:.6g}", f"{x[-1]:.6g}"
    lines.append(f"{'':>{margin}} └{'─' * columns}")
    lines.append(f"{'':>{margin + 2}}{ends[0]}{x_label:^{max(columns - len(ends[0]) - len(ends[1]), 0)}}{ends[1]}")
    first, *others = panel.curves
    legend = f"{panel.label}:  ⣿ {first}" + "".join(f"   ⠂⠂ {name}" for name in others)
    return "\n".join([f"{'':>{margin + 2}}{legend}", *lines])


def _at(x: Sequence[float], y: Sequence[float], where: float) -> float:
    """Linear interpolation on increasing ``x``."""
    from bisect import bisect_left

    right = min(max(bisect_left(x, where), 1), len(x) - 1)
    share = (where - x[right - 1]) / (x[right] - x[right - 1])
    return y[right - 1] + share * (y[right] - y[right - 1])
