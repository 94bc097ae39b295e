"""What train, resume, rerun, eval, predict and config do."""

from __future__ import annotations

import json as jsonlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.validation import did_you_mean
from losskit_cli.catalogue import as_text
from losskit_cli.compare import show_seconds
from losskit_cli.compose import Composed, Composer, of_one_run, to_yaml
from losskit_cli.errors import LosskitError, UsageError
from losskit_cli.found_schedule import filled_as, with_replay
from losskit_cli.importing import import_heavy
from losskit_cli.launch import go, own_stdout, start
from losskit_cli.merging import described, differences, flat
from losskit_cli.names import run_name
from losskit_cli.overlay import Overlay, overlay
from losskit_cli.rundir import CHECKPOINTS, RunSpec
from losskit_cli.runs import find_run

Overrides = Sequence[str]
EVALUATED = ("test", "val", "train", "all")
PREDICTIONS = (".csv", ".parquet", ".json", ".npz")
RESUMABLE_GROUPS = ("trainer", "callbacks", "tracking")
RESUMABLE_KEYS = ("test", "tags", "allow_targets", "data.path", "data.num_workers", "data.in_memory", "data.eval_batch_size")


def train(overrides: Overrides, config_dirs: Sequence[Path], config_name: str, *, dry_run: bool, multirun: bool, json: bool, quiet: bool) -> None:
    """``losskit train``."""
    composer = Composer(config_dirs, config_name)
    if multirun and dry_run:
        _try_all(composer, overrides, json=json)
        return
    if multirun:
        from losskit_cli.workers import importing_ahead

        with importing_ahead(overrides):
            from losskit_cli.sweep import start as sweep

            sweep(composer, overrides, every_point=True, json=json, quiet=quiet)
        return
    of_sweep = next((text for text in overrides if text.lstrip("+~").replace("/", ".").split("=")[0].split(".")[0] == "sweep"), None)
    if of_sweep is not None:
        raise UsageError(f"{of_sweep} is about a sweep, and this is one run: losskit sweep … (or losskit train --multirun …)")
    spec = spec_of(composer.compose(overrides), config_name)
    if dry_run:
        _dry_run(spec, json=json)
        return
    report(start(spec, quiet=quiet or json, json=json), json=json, quiet=quiet)


def spec_of(composed: Composed, config_name: str = "train") -> RunSpec:
    """A composed experiment as the specification of one run, named."""
    from losskit_cli.check import checked_settings
    from losskit_cli.tracking.settings import TrackingSettings

    config = with_replay(checked_settings(of_one_run(composed.resolved())))
    TrackingSettings.from_config(config["tracking"])
    name = config.get("name") or run_name(composed.choices, config["seed"])
    return RunSpec(str(name), config, composed.choices, composed.overrides, [str(d) for d in composed.config_dirs], config_name)


def resume(run: str | None, overrides: Overrides, *, last: bool, json: bool, quiet: bool) -> None:
    """``losskit resume``: the same run, from its newest whole checkpoint."""
    if run is not None and "=" in run:  # --last leaves the first override in RUN's place
        overrides, run = [run, *overrides], None
    if (run is None) == (not last):
        raise UsageError("say which run: losskit resume RUN, or --last for the one that was started last")
    found = find_run(run)
    spec = RunSpec.load(found.run_dir)
    saved = spec
    if overrides:
        refuse_another_experiment(spec, overrides)
        spec = overlay(spec, overrides).spec
    if found.status == "FINISHED" and not lengthened(saved.config, spec.config):
        raise UsageError(f"{spec.name} is finished. To train it longer: losskit resume {spec.name} trainer.max_epochs=… (or trainer.max_steps=…)")
    if found.is_running():
        raise UsageError(f"{spec.name} is still running")
    if lengthened(saved.config, spec.config) and spec.config.get("schedule"):
        note = f"schedule={spec.choices.get('schedule')} now spans the whole longer run: the learning rate goes on where that is at this step"
        _stderr(quiet).print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    summary = go(spec, found.run_dir, saved=saved, quiet=quiet or json, json=json)
    report(summary, json=json, quiet=quiet)


def rerun(run: str, overrides: Overrides, *, dry_run: bool, json: bool, quiet: bool) -> None:
    """``losskit rerun``: a new run from what another saved."""
    from losskit_cli.check import checked_settings

    found = find_run(run)
    saved = RunSpec.load(found.run_dir)
    laid = overlay(saved, overrides)
    config = with_replay(checked_settings(laid.spec.config))
    named = any(text.split("=")[0].lstrip("+") == "name" for text in overrides)
    config["name"] = config["name"] if named else None  # a name is one run's
    _tell_what_differs(saved, laid, config, json=json and dry_run, out=Console() if dry_run else _stderr(quiet or json))
    if dry_run:
        return
    spec = replace(laid.spec, name=config["name"] or run_name(laid.spec.choices, config["seed"]), config=config)
    summary = start(spec, quiet=quiet or json, json=json)
    report(summary, json=json, quiet=quiet)
    if summary.run_id and found.run_id and not (json or quiet):
        Console().print(f"what changed     losskit diff {saved.name} {summary.run_name}", markup=False, highlight=False, soft_wrap=True)


def evaluate(run: str, overrides: Overrides, *, checkpoint: str, split: str, json: bool) -> None:
    """``losskit eval``."""
    if split not in EVALUATED:
        raise UsageError(f"--split must be one of {', '.join(EVALUATED)}, but got {split!r}{did_you_mean(split, EVALUATED)}")
    found = find_run(run)
    spec = RunSpec.load(found.run_dir)
    if overrides:
        spec = overlay(spec, overrides).spec
    path = checkpoint_path(found.run_dir, checkpoint)
    import_heavy("losskit_cli.prediction")
    from losskit_cli.prediction import evaluate_split

    with own_stdout(json):
        metrics, samples = evaluate_split(spec, path, split)
    if json:
        outcome = {"run_id": found.run_id, "run_name": spec.name, "checkpoint": str(path), "split": split, "samples": samples, "metrics": metrics}
        _write(jsonlib.dumps(outcome))
        return
    what = "samples of all splits" if split == "all" else f"samples of the {split} split"
    Console().print(f"{spec.name}, {path.name}: {samples:,} {what}", markup=False, highlight=False, soft_wrap=True)
    table = Table("", "value")
    for name, value in metrics.items():
        table.add_row(name.partition("/")[2], _number(value))
    Console().print(table)


def predict(run: str, *, input: Path | None, output: Path, checkpoint: str, json: bool) -> None:
    """``losskit predict``."""
    found = find_run(run)
    spec = RunSpec.load(found.run_dir)
    path = checkpoint_path(found.run_dir, checkpoint)
    if output.suffix not in PREDICTIONS:
        raise UsageError(f"--output must end in {', '.join(PREDICTIONS[:-1])} or {PREDICTIONS[-1]}, but got {output}")
    if input is not None and not input.exists():
        raise UsageError(f"--input {input}: there is no such file")
    import_heavy("losskit_cli.prediction")
    from losskit_cli.prediction import predict_file

    with own_stdout(json):
        rows, notes = predict_file(spec, path, input, output)
    for note in notes:
        _stderr(False).print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if json:
        _write(jsonlib.dumps({"run_id": found.run_id, "run_name": spec.name, "checkpoint": str(path), "rows": rows, "output": str(output)}))
    else:
        _stderr(False).print(f"{rows:,} {'prediction' if rows == 1 else 'predictions'} in {output}", markup=False, highlight=False, soft_wrap=True)


def sync(runs: Sequence[str], *, uri: str | None = None) -> None:
    """``losskit sync``."""
    from losskit_cli.tracking.process import run_sync

    outcomes = run_sync([str(find_run(run).run_dir) for run in runs], uri=uri)
    out = _stderr(False)
    if not outcomes:
        out.print("nothing to send: every run below outputs is in its store")
    for run_dir, outcome in outcomes:
        out.print(f"{run_dir.name}: {'all of it is in the store' if outcome.ok else outcome.error}", markup=False, highlight=False, soft_wrap=True)
    if not all(outcome.ok for _, outcome in outcomes):
        raise LosskitError("not everything could be sent; it is kept, try again later")


def show_config(
    overrides: Overrides, config_dirs: Sequence[Path], config_name: str, *, cfg: str = "job", resolve: bool = False, origins: bool = False, json: bool = False
) -> None:
    """``losskit config`` and ``losskit train --cfg job``."""
    if cfg not in ("job", "all", "hydra"):
        raise UsageError(f"--cfg must be job, all or hydra, but got {cfg!r}")
    composed = Composer(config_dirs, config_name).compose(overrides)
    if json:
        config = composed.resolved()
        _write(jsonlib.dumps({"config": config, "choices": composed.choices, "origins": composed.origins} if origins else config))
    elif origins:
        shown: Any = composed.resolved() if resolve else composed.config
        rows = [(key, _value_at(shown, key), source) for key, source in sorted(composed.origins.items())]
        width = min(48, max((len(key) for key, _, _ in rows), default=0))
        for key, value, source in rows:
            _write(f"{key:<{width}}  {value:<28}  # {source}")
    else:
        _write(to_yaml(composed.resolved() if resolve else composed.config).rstrip())


def checkpoint_path(run_dir: Path, which: str) -> Path:
    """``best``, ``last`` or a file, as a path that exists."""
    path = run_dir / CHECKPOINTS / f"{which}.ckpt" if which in ("best", "last", "previous") else Path(which)
    if not path.is_file():
        raise UsageError(f"there is no checkpoint {path}" + ("; the run has not saved one yet" if which in ("best", "last") else " (best, last or a file)"))
    return path


def report(summary: Any, *, json: bool, quiet: bool) -> None:
    """The end of a run: one JSON object, or a table and where to look."""
    if json:
        _write(jsonlib.dumps(summary.as_dict()))
        return
    out = _stderr(quiet)
    for note in summary.notes:
        out.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if quiet:
        return
    out = Console()
    took = f"{summary.status}  {summary.steps:,} steps in {show_seconds(summary.duration_s)}"
    out.print(Text.assemble((summary.run_name, "bold"), f"  {took}"), highlight=False, soft_wrap=True)
    names = dict.fromkeys(name.partition("/")[2] for name in summary.metrics if "/" in name)
    stages = [stage for stage in ("train", "val", "test") if any(name.startswith(f"{stage}/") for name in summary.metrics)]
    table = Table("", *stages)
    for name in names:
        table.add_row(name, *(_number(summary.metrics.get(f"{stage}/{name}")) for stage in stages))
    if names:
        out.print(table)
    if summary.best_checkpoint:
        out.print(f"best checkpoint  {os.path.relpath(summary.best_checkpoint)}", markup=False, highlight=False, soft_wrap=True)
    if summary.run_id:
        out.print("look at it       losskit ui   ·   losskit compare", highlight=False)


# -- pieces ------------------------------------------------------------------------------------------------------------------
def _dry_run(spec: RunSpec, *, json: bool) -> None:
    result = _tried(spec, json=json)
    if json:
        _write(jsonlib.dumps(result))
    else:
        _print_tried(result)


def _tried(spec: RunSpec, *, json: bool) -> dict[str, Any]:
    import_heavy("losskit_cli.run")
    from losskit_cli.models import load_model_of_run
    from losskit_cli.run import dry_run

    with own_stdout(json):
        return dry_run(spec, load_model_of_run)


def _print_tried(result: Mapping[str, Any]) -> None:
    table = Table(title="dry run: one batch forward and backward, nothing recorded", title_justify="left", show_header=False)
    table.add_row("loss", f"{result['loss']:.4f}" + ("" if result["finite"] else "  (not finite!)"))
    for name, value in result["parts"].items():
        table.add_row(f"  {name}", f"{value:.4f}")
    table.add_row("parameters", f"{result['parameters']:,}")
    table.add_row("batch", ", ".join(f"{name} {tuple(shape)}" for name, shape in result["batch"].items()))
    table.add_row("steps in all", f"{result['total_steps']:,}")
    for name, arguments in result["bindings"].items():
        table.add_row(name, ", ".join(q if p == q else f"{p} from {q}" for p, q in arguments.items()))
    Console().print(table)


def _try_all(composer: Composer, overrides: Overrides, *, json: bool) -> None:
    """A dry run of every combination."""
    jobs = composer.expand(overrides)
    specs = [spec_of(composer.compose(job), composer.config_name) for job in jobs]  # a mistake in any of them is an error before the first
    outcomes = []
    for number, (job, spec) in enumerate(zip(jobs, specs, strict=True), start=1):
        _stderr(json).print(f"run {number} of {len(jobs)}: {' '.join(job)}", markup=False, highlight=False, soft_wrap=True)
        outcomes.append({"overrides": job} | _tried(spec, json=json))
        if not json:
            _print_tried(outcomes[-1])
    if json:
        _write(jsonlib.dumps(outcomes))


def refuse_another_experiment(spec: RunSpec, overrides: Overrides) -> None:
    """A resumed run stays the experiment that it is: only how long, on what and with which bookkeeping it goes on may change."""
    for text in overrides:
        key = text.split("=", 1)[0].lstrip("+~")
        if key.split(".")[0] not in RESUMABLE_GROUPS and key not in RESUMABLE_KEYS:
            raise UsageError(
                f"{key} cannot change in the middle of a run (trainer.…, callbacks.…, tracking.… can). For another experiment: "
                f"losskit rerun {spec.name} {text}; from this run's weights: add ckpt_path=…/{CHECKPOINTS}/last.ckpt"
            )


def lengthened(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a config lets training go on for longer than another."""

    def limit(config: Mapping[str, Any], key: str) -> float:
        value = config["trainer"].get(key)
        return value if isinstance(value, int) and value >= 0 else math.inf

    return any(limit(after, key) > limit(before, key) for key in ("max_epochs", "max_steps"))


def _tell_what_differs(saved: RunSpec, laid: Overlay, config: Mapping[str, Any], *, json: bool, out: Console) -> None:
    """What a new run does otherwise than the saved one, and where the config tree has moved on since."""
    choices = (_texts(saved.choices), _texts(laid.spec.choices))
    values = (_telling(saved.config, config), _telling(config, config))
    drift = (_telling(laid.drift[0], config), _telling(filled_as(laid.drift[1], laid.drift[0]), config))
    if json:
        found: dict[str, Any] = {"run_name": saved.name, "left_out": [text for text, _ in laid.left_out]}
        for name, pair in (("choices", choices), ("config", values), ("drift", drift)):
            found[name] = {key: list(both) for key, both in differences(*pair).items()}
        _write(jsonlib.dumps(found, ensure_ascii=False))
        return
    lines = [(f"{key}: {text}", "") for pair, show in ((choices, str), (values, as_text)) for key, text in described(pair[0], pair[1], show)]
    lines = lines or [(f"the same config as {saved.name}", "")]
    lines += [(f"left out: {text}, which was set for {choice}", "yellow") for text, choice in laid.left_out]
    lines += [(f"kept as it was saved, though the config tree has changed: {key}: {text}", "yellow") for key, text in described(drift[0], drift[1], as_text)]
    for line, style in lines:
        out.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _telling(config: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A config's values less what the choices say already (classes), and the name, unless the new run is given one."""
    kept = {key: value for key, value in flat(config).items() if key.rpartition(".")[2] != "_target_"}
    return kept if new["name"] else {key: value for key, value in kept.items() if key != "name"}


def _texts(choices: Mapping[str, Any]) -> dict[str, str]:
    """Choices to be compared; what says nothing (no experiment) is left out."""
    return {group: as_text(choice) for group, choice in choices.items() if choice not in (None, [], "none")}


def _value_at(config: Any, key: str) -> str:
    from omegaconf import OmegaConf

    node = config if OmegaConf.is_config(config) else OmegaConf.create(config)
    parent, _, name = key.rpartition(".")
    holder = OmegaConf.select(node, parent) if parent else node
    try:
        value = OmegaConf.to_container(holder, resolve=False)[name]  # type: ignore[call-overload, index]
    except (KeyError, TypeError, ValueError):
        return "(deleted)"
    return as_text(value)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"


def _stderr(quiet: bool) -> Console:
    return Console(stderr=True, quiet=quiet)


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
