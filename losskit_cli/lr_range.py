"""``losskit lr-range``: which learning rates an experiment bears. A short training in which the rate rises until the loss diverges; nothing of it is kept.

Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2015, arXiv:1506.01186, section 3.3; the rising rate, the bound of four times the least
loss and the rate of the steepest descent as in fastai's ``lr_find``. Where the range begins and ends is our reading (:func:`suggest`).
"""

from __future__ import annotations

import math
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from losskit_cli.errors import RunError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from losskit_cli.rundir import RunSpec

FEWEST = 20
DIVERGED = 4.0  # times the least smoothed loss
LAG = 0.9  # of the smoothed loss that is watched while it runs: about ten steps
BEGUN = 0.1  # of the whole fall: from here on a rate is of use
AT_LEAST = 0.02  # of the whole fall: so near to the least loss counts as it, as many curves are flat there
MARGIN = 3.0  # the highest rate is so much below the one of the least loss


@dataclass(frozen=True)
class Suggestion:
    """What the curve says: the least rate at which the loss falls, where it falls fastest, the highest one to use, and the one to begin with.

    Attributes:
        least_at: the highest rate at which the smoothed loss was at its least.
        use: halfway, in the logarithm, between the steepest descent and the highest to use.
    """

    low: float
    steepest: float
    high: float
    least_at: float
    use: float


@dataclass
class RangeTest:
    """What came of it: a loss for each rate, in rising order.

    Attributes:
        smoothed: the losses, each averaged over its neighbours on both sides.
        diverged: the rate at which the test was ended, the loss having diverged; ``None`` where it reached the end.
        suggestion: ``None`` where the loss never fell.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float] = field(default_factory=list)
    diverged: float | None = None
    suggestion: Suggestion | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def override(self) -> str | None:
        return f"optimizer.lr={self.suggestion.use:.2g}" if self.suggestion else None


def run_lr_range(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    config_name: str,
    *,
    steps: int = 200,
    low: float = 1e-7,
    high: float = 10.0,
    output: Path | None = None,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """``losskit lr-range``.

    Raises:
        UsageError: a range that is none, or an experiment that cannot be built.
        RunError: the loss is not finite from the start.
    """
    for name, value in (("--min", low), ("--max", high)):
        if not 0 < value < math.inf:
            raise UsageError(f"{name} must be a finite number > 0, but got {value:g}")
    if low >= high:
        raise UsageError(f"--min must be below --max, but got --min {low:g} --max {high:g}")
    if steps < FEWEST:
        raise UsageError(f"--steps must be at least {FEWEST}, or there is no curve to read, but got {steps}")
    from rich.console import Console

    from losskit_cli.commands import spec_of
    from losskit_cli.compose import Composer
    from losskit_cli.importing import import_heavy
    from losskit_cli.launch import own_stdout

    spec = spec_of(Composer(config_dirs, config_name).compose(overrides), config_name)
    import_heavy("losskit_cli.run")
    with own_stdout(json):
        test = range_test(spec, steps, low, high, Console(stderr=True, quiet=quiet or json))
    file = output or Path("lr-range.png")
    draw(test, file, spec)
    if json:
        suggestion = vars(test.suggestion) if test.suggestion else None
        found = {"rates": test.rates, "losses": test.losses, "smoothed": test.smoothed, "diverged": test.diverged, "suggestion": suggestion}
        sys.stdout.write(dumps(found | {"override": test.override, "notes": test.notes, "file": str(file)}) + "\n")
    elif not quiet:
        sys.stdout.write(shown(test, file))


def range_test(spec: RunSpec, steps: int, low: float, high: float, console: Console) -> RangeTest:
    """Train ``spec`` for at most ``steps`` steps with the rate rising evenly in the logarithm, on one device, and look at the losses.

    Regularizers, transforms, clipping and precision are the experiment's; its schedule, averaging and callbacks have no part in it.
    """
    import torch

    from components.tasks.base import NonFiniteLossError
    from losskit_cli.build import Builder
    from losskit_cli.first_batch import first_batch, leaving_no_trace
    from losskit_cli.models import load_model_of_run
    from losskit_cli.ranks import one_device
    from losskit_cli.run import Interrupted, load_weights, own_exits, quiet_libraries
    from losskit_cli.threads import cpu_threads

    quiet_libraries()
    experiment = Builder(_bare(spec.config, steps, one_device(spec.config["trainer"])), spec.choices, load_model_of_run).experiment()
    if spec.config.get("ckpt_path"):
        load_weights(experiment, Path(spec.config["ckpt_path"]))
    with leaving_no_trace(experiment.task):
        tried = first_batch(experiment, spec.choices)
        if not bool(torch.isfinite(tried.total)):
            raise RunError(f"the loss is not finite from the start: the first batch gives {float(tried.total.detach()):g}, before any step")
    ramp = ramp_callback(steps, low, high, console)
    experiment.trainer.callbacks[:] = [ramp]  # type: ignore[attr-defined]
    try:
        with own_exits(), cpu_threads(spec.config["trainer"].get("threads", "auto"), tried.operations):
            experiment.trainer.fit(experiment.task, datamodule=experiment.data)
    except NonFiniteLossError:
        pass  # it is in the record; the task says so once more when training ends
    except KeyboardInterrupt as leaving:
        raise Interrupted("stopped; the test keeps nothing", signal.SIGINT) from leaving
    finally:
        ramp.close()
    test = RangeTest(ramp.rates, ramp.losses, diverged=ramp.diverged)
    finite = sum(map(math.isfinite, test.losses))
    if finite < max(FEWEST // 4, steps // 20):
        raise RunError(f"the loss is not finite after {finite} steps, at a learning rate of {test.rates[-1]:.2g}: there is no curve to read. Lower --min")
    examine(test)
    return test


def _bare(config: Mapping[str, Any], steps: int, trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The experiment's config with nothing in it but training for so many steps."""
    limits: dict[str, Any] = {"max_steps": steps, "max_epochs": -1, "min_steps": None, "min_epochs": None, "max_time": None}
    limits |= {"limit_val_batches": 0, "num_sanity_val_steps": 0, "log_every_n_steps": 10 * steps, "fast_dev_run": False}
    without = {"schedule": None, "averaging": None, "callbacks": {}, "tracking": {"enabled": False}, "train": True, "test": True}
    return {**config, **without, "trainer": {**trainer, **limits, "profiler": None}}


def ramp_callback(steps: int, low: float, high: float, console: Console) -> Any:
    """A Lightning callback that raises the rate and records the loss of every step (a class of its own here, as torch must not be imported above)."""
    import lightning
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Ramp(lightning.Callback):
        """The rate of step *i* is ``low (high / low)^(i / (steps - 1))``; other parameter groups keep their proportion to the first."""

        def __init__(self) -> None:
            self.rates: list[float] = []
            self.losses: list[float] = []
            self.diverged: float | None = None
            self._parts: list[Any] = []
            self._smooth, self._weight, self._least = 0.0, 0.0, math.inf
            self._progress = Progress(
                TextColumn("lr range"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[now]}"), TimeRemainingColumn(),
                console=console, transient=True, disable=not console.is_terminal,
            )  # fmt: skip
            self._bar = self._progress.add_task("lr range", total=steps, now="")

        def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            self._progress.start()

        def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int) -> None:
            rate = low * (high / low) ** (trainer.global_step / (steps - 1))
            groups = trainer.optimizers[0].param_groups
            first = groups[0].setdefault("initial_lr", groups[0]["lr"])
            for group in groups:
                group["lr"] = rate * (group.setdefault("initial_lr", group["lr"]) / first if first else 1.0)

        def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
            self._parts.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
            if trainer.global_step == len(self.rates):  # batches whose gradients are gathered for one step
                return
            loss = float(sum(self._parts)) / len(self._parts)
            self._parts.clear()
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self.rates.append(rate)
            self.losses.append(loss)
            self._progress.update(self._bar, completed=len(self.rates), now=f"lr {rate:.1e}  loss {loss:.4g}")
            self._watch(rate, loss, trainer)

        def _watch(self, rate: float, loss: float, trainer: lightning.Trainer) -> None:
            self._smooth, self._weight = LAG * self._smooth + (1 - LAG) * loss, LAG * self._weight + (1 - LAG)
            smooth = self._smooth / self._weight
            self._least = min(self._least, smooth) if math.isfinite(smooth) else self._least
            if not math.isfinite(smooth) or smooth > self._least + (DIVERGED - 1) * max(abs(self._least), 1e-3):
                self.diverged = rate
                trainer.should_stop = True

        def close(self) -> None:
            self._progress.stop()

    return Ramp()


# -- reading the curve ---------------------------------------------------------------------------------------------------------------
def examine(test: RangeTest) -> None:
    """Smooth the curve, read the suggestion from it and note what the reader should know."""
    whole = [loss for loss in test.losses if math.isfinite(loss)]
    test.rates, test.losses = test.rates[: len(whole)], test.losses[: len(whole)]  # only the last can be otherwise: there the test ends
    test.smoothed = centred(test.losses)
    test.suggestion = suggest(test.rates, test.smoothed)
    if test.suggestion is None:
        test.notes.append(f"the loss never fell below where it began, at no rate from {test.rates[0]:.2g} to {test.rates[-1]:.2g}: nothing to suggest")
    elif test.diverged is None and test.suggestion.least_at > 0.8 * test.rates[-1]:
        test.notes.append(f"the loss was still falling at {test.rates[-1]:.2g}: a higher --max may show more")


def centred(losses: Sequence[float]) -> list[float]:
    """Each loss averaged with its neighbours, a twentieth of the curve to either side and fewer at its ends, weighted by nearness: no lag."""
    reach = max(len(losses) // 20, 1)
    smooth = []
    for i in range(len(losses)):
        near = [(losses[j], reach + 1 - abs(i - j)) for j in range(max(i - reach, 0), min(i + reach + 1, len(losses)))]
        smooth.append(sum(loss * weight for loss, weight in near) / sum(weight for _, weight in near))
    return smooth


def suggest(rates: Sequence[float], smoothed: Sequence[float]) -> Suggestion | None:
    """The range that a smoothed curve shows.

    * ``low``: the rate from which on the loss stays a tenth of its whole fall below its beginning.
    * ``steepest``: the rate at which it falls fastest, per factor of the rate, between there and its least.
    * ``high``: a third of the highest rate at which the loss is at its least, as what is gained there is about to be lost; at least ``steepest``.
    * ``use``: the geometric mean of these two.

    ``None``: the loss has not fallen by more than what it goes up and down by at its beginning.
    """
    lead = max(len(smoothed) // 10, 2)
    start = sum(smoothed[:lead]) / lead
    least = min(range(len(smoothed)), key=smoothed.__getitem__)
    fall = start - smoothed[least]
    if fall <= max(max(smoothed[:lead]) - min(smoothed[:lead]), 1e-3 * abs(start)) or least < lead:
        return None
    begun = max(i for i in range(least) if smoothed[i] > start - BEGUN * fall) + 1
    span = max(len(smoothed) // 40, 1)
    slopes = {i: smoothed[min(i + span, least)] - smoothed[max(i - span, 0)] for i in range(begun, least + 1)}
    steepest = min(slopes, key=slopes.__getitem__)
    last = max(i for i in range(least, len(smoothed)) if smoothed[i] <= smoothed[least] + AT_LEAST * fall)
    high = max(rates[last] / MARGIN, rates[steepest])
    return Suggestion(rates[begun], rates[steepest], high, rates[last], math.sqrt(rates[steepest] * high))


# -- showing it ----------------------------------------------------------------------------------------------------------------------
def shown(test: RangeTest, file: Path) -> str:
    """The curve in the terminal, and what it says."""
    from losskit_cli.plot import Panel, blocks

    bound = _bound(test)
    curves = {"smoothed loss": [min(v, bound) for v in test.smoothed], "each step": [min(v, bound) for v in test.losses]}
    size = shutil.get_terminal_size((80, 24))
    lines = [blocks([math.log10(rate) for rate in test.rates], Panel("loss", curves), "log10 of the learning rate", min(size.columns, 100)), ""]
    if test.suggestion is not None:
        found = test.suggestion
        rows = [
            ("lowest useful rate", found.low, "from here on the loss falls"),
            ("steepest descent", found.steepest, "here it falls fastest"),
            ("highest to use", found.high, f"below that of the least loss, {found.least_at:.2g}"),
        ]
        lines += [f"{name:<20}{rate:<10.2g}{why}" for name, rate, why in rows]
    if test.diverged is not None:
        lines.append(f"{'diverged':<20}{test.diverged:<10.2g}the test ended here, after {len(test.rates)} steps")
    lines += [f"note: {note}" for note in test.notes]
    if test.override is not None:
        lines.append(f"{'begin with':<20}{test.override}")
    return "\n".join([*lines, str(file)]) + "\n"


def _bound(test: RangeTest) -> float:
    """Where a picture is cut off, so that what diverges does not press all else flat."""
    least, start = min(test.smoothed), test.smoothed[0]
    return max(start, least) + 0.5 * max(start - least, abs(least) * 0.1, 1e-12)


def draw(test: RangeTest, file: Path, spec: RunSpec) -> None:
    """The PNG."""
    from matplotlib.figure import Figure

    from losskit_cli.plot import save_figure

    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, color="#777777", linewidth=0.8, alpha=0.6, label="each step")
    axes.plot(test.rates, test.smoothed, color="#0072B2", linewidth=2.2, label="smoothed")
    if test.suggestion is not None:
        found = test.suggestion
        axes.axvspan(found.low, found.high, color="#0072B2", alpha=0.08, label="useful")
        axes.axvline(found.steepest, color="#009E73", linestyle="--", linewidth=1.4, label=f"steepest {found.steepest:.2g}")
        axes.axvline(found.high, color="#D55E00", linestyle="--", linewidth=1.4, label=f"highest {found.high:.2g}")
    low, bound = min(*test.smoothed, *test.losses), _bound(test)
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", ylim=(low - 0.05 * (bound - low), bound + 0.05 * (bound - low)))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    chosen = " ".join(f"{group}={spec.choices[group]}" for group in ("data", "model", "optimizer") if isinstance(spec.choices.get(group), str))
    figure.suptitle(f"learning-rate range: {chosen}", fontsize=10)
    save_figure(figure, file)


__all__ = ["RangeTest", "Suggestion", "centred", "examine", "range_test", "run_lr_range", "suggest"]
