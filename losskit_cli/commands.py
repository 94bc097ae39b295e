"""What train, resume, rerun, eval, predict and config do."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from losskit_cli.compose import Composed, Composer, to_yaml
from losskit_cli.errors import LosskitError, UsageError
from losskit_cli.merging import differences, three_way
from losskit_cli.names import run_name
from losskit_cli.rundir import CHECKPOINTS, RunSpec, make_run_dir
from losskit_cli.runs import find_run

Overrides = Sequence[str]


def train(overrides: Overrides, config_dirs: Sequence[Path], config_name: str, *, dry_run: bool, multirun: bool, json: bool, quiet: bool) -> None:
    """``losskit train``."""
    composer = Composer(config_dirs, config_name)
    if multirun:
        _multirun(composer, overrides, json=json, quiet=quiet)
        return
    spec = spec_of(composer.compose(overrides), config_name)
    if dry_run:
        _dry_run(spec, json=json)
        return
    summary = start(spec, quiet=quiet or json)
    report(summary, json=json, quiet=quiet)


def spec_of(composed: Composed, config_name: str = "train") -> RunSpec:
    """A composed experiment as the specification of one run, named."""
    from losskit_cli.check import checked_settings
    from losskit_cli.tracking.settings import TrackingSettings

    config = checked_settings(composed.resolved())
    TrackingSettings.from_config(config["tracking"])
    name = config.get("name") or run_name(composed.choices, config["seed"])
    return RunSpec(str(name), config, composed.choices, composed.overrides, [str(d) for d in composed.config_dirs], config_name)


def start(spec: RunSpec, *, quiet: bool) -> Any:
    """Run ``spec`` in a new directory. The tracking process opens its store while this one imports torch."""
    from losskit_cli.session import Tracking

    if spec.config["trainer"].get("fast_dev_run"):
        spec = spec.with_config({**spec.config, "tracking": {"enabled": False}})
    run_dir = make_run_dir(Path(spec.config["output_dir"]), spec.name)
    tracking = Tracking.off()
    try:
        spec.save(run_dir)
        tracking = Tracking.start(run_dir, spec.config["tracking"])
        from losskit_cli.models import load_model_of_run
        from losskit_cli.run import execute

        return execute(spec, run_dir, tracking, console=_stderr(quiet), load_model=load_model_of_run)
    except BaseException:
        if not tracking.begun:
            from losskit_cli.rundir import remove_run_dir

            tracking.abandon()
            remove_run_dir(run_dir)
        raise


def resume(run: str | None, overrides: Overrides, *, last: bool, json: bool, quiet: bool) -> None:
    """``losskit resume``: the same run, from its newest whole checkpoint."""
    if run is not None and "=" in run:  # --last leaves the first override in RUN's place
        overrides, run = [run, *overrides], None
    if (run is None) == (not last):
        raise UsageError("say which run: losskit resume RUN, or --last for the one that was started last")
    found = find_run(run)
    spec = RunSpec.load(found.run_dir)
    if found.status == "FINISHED" and not overrides:
        raise UsageError(f"{spec.name} is finished. To train it longer: losskit resume {spec.name} trainer.max_epochs=… (or trainer.max_steps=…)")
    if found.is_running():
        raise UsageError(f"{spec.name} is still running")
    if overrides:
        spec = spec.with_config(_overlaid(spec, overrides)[0])
        spec.save(found.run_dir)
    from losskit_cli.session import Tracking

    tracking = Tracking.start(found.run_dir, spec.config["tracking"])
    from losskit_cli.models import load_model_of_run
    from losskit_cli.run import execute

    summary = execute(spec, found.run_dir, tracking, resume=True, console=_stderr(quiet or json), load_model=load_model_of_run)
    report(summary, json=json, quiet=quiet)


def rerun(run: str, overrides: Overrides, *, dry_run: bool, json: bool, quiet: bool) -> None:
    """``losskit rerun``: a new run from what another saved."""
    from losskit_cli.check import checked_settings

    found = find_run(run)
    saved = RunSpec.load(found.run_dir)
    config, choices, drifted = _overlaid(saved, overrides)
    config = checked_settings(config)
    changed = differences(saved.config, config)
    out = _stderr(quiet)
    for key, (before, after) in changed.items():
        out.print(f"[bold]{key}[/]: {before!r} → {after!r}", highlight=False)
    for key, (before, after) in drifted.items():
        out.print(f"{key}: kept {before!r} as it was saved (the config tree now says {after!r})", style="yellow", highlight=False)
    if not changed:
        out.print("the same config")
    if dry_run:
        return
    name = run_name(choices, config["seed"])
    spec = RunSpec(name, config, choices, [*saved.overrides, *overrides], saved.config_dirs, saved.config_name)
    report(start(spec, quiet=quiet or json), json=json, quiet=quiet)


def evaluate(run: str, overrides: Overrides, *, checkpoint: str, json: bool) -> None:
    """``losskit eval``."""
    found = find_run(run)
    spec = RunSpec.load(found.run_dir)
    if overrides:
        spec = spec.with_config(_overlaid(spec, overrides)[0])
    path = checkpoint_path(found.run_dir, checkpoint)
    from losskit_cli.models import load_model_of_run
    from losskit_cli.run import evaluate as run_evaluate

    metrics = run_evaluate(spec, path, load_model_of_run)
    if json:
        _write(jsonlib.dumps({"run_name": spec.name, "checkpoint": str(path), "metrics": metrics}))
        return
    table = Table("metric", "value", title=f"{spec.name}: {path.name}")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.6g}")
    Console().print(table)


def predict(run: str, *, input: Path, output: Path, checkpoint: str, json: bool) -> None:
    """``losskit predict``."""
    found = find_run(run)
    spec = RunSpec.load(found.run_dir)
    path = checkpoint_path(found.run_dir, checkpoint)
    if output.suffix not in (".csv", ".parquet", ".json"):
        raise UsageError(f"--output must end in .csv, .parquet or .json, but got {output}")
    if not input.exists():
        raise UsageError(f"--input {input}: there is no such file")
    from losskit_cli.prediction import predict_file

    rows = predict_file(spec, path, input, output)
    if json:
        _write(jsonlib.dumps({"run_name": spec.name, "rows": rows, "output": str(output)}))
    else:
        _stderr(False).print(f"{rows} predictions in {output}")


def sync(runs: Sequence[str], *, uri: str | None = None) -> None:
    """``losskit sync``."""
    from losskit_cli.tracking.process import run_sync

    outcomes = run_sync(list(runs), uri=uri)
    out = _stderr(False)
    if not outcomes:
        out.print("nothing to send: every run below outputs is in its store")
    for run_dir, outcome in outcomes:
        out.print(f"{run_dir.name}: {'all of it is in the store' if outcome.ok else outcome.error}", highlight=False)
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
        out.print(f"note: {note}", style="yellow", highlight=False)
    if quiet:
        return
    out = Console()
    out.print(f"[bold]{summary.run_name}[/]  {summary.status}  {summary.steps} steps in {summary.duration_s:.1f} s", highlight=False, soft_wrap=True)
    names = dict.fromkeys(name.partition("/")[2] for name in summary.metrics if "/" in name)
    stages = [stage for stage in ("train", "val", "test") if any(name.startswith(f"{stage}/") for name in summary.metrics)]
    table = Table("", *stages)
    for name in names:
        table.add_row(name, *(_number(summary.metrics.get(f"{stage}/{name}")) for stage in stages))
    if names:
        out.print(table)
    if summary.best_checkpoint:
        out.print(f"best checkpoint  {os.path.relpath(summary.best_checkpoint)}", highlight=False, soft_wrap=True)
    if summary.run_id:
        out.print("look at it       losskit ui   ·   losskit compare", highlight=False)


# -- pieces ------------------------------------------------------------------------------------------------------------------
def _dry_run(spec: RunSpec, *, json: bool) -> None:
    from losskit_cli.models import load_model_of_run
    from losskit_cli.run import dry_run

    result = dry_run(spec, load_model_of_run)
    if json:
        _write(jsonlib.dumps(result))
        return
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


def _multirun(composer: Composer, overrides: Overrides, *, json: bool, quiet: bool) -> None:
    """Every combination, one after the other; a failed run does not stop the others."""
    jobs = composer.expand(overrides)
    composed = [spec_of(composer.compose(job), composer.config_name) for job in jobs]  # a mistake in any of them is an error before the first
    summaries, failures = [], []
    out = _stderr(quiet or json)
    for number, (job, spec) in enumerate(zip(jobs, composed, strict=True), start=1):
        out.print(f"run {number} of {len(jobs)}: {' '.join(job)}", highlight=False)
        try:
            summaries.append((job, start(spec, quiet=quiet or json)))
        except LosskitError as error:
            if error.exit_code > 128:
                raise
            failures.append((job, error))
            sys.stderr.write(f"Error: {error}\n")
    if json:
        _write(jsonlib.dumps([{"overrides": job} | summary.as_dict() for job, summary in summaries]))
    elif not quiet:
        names = list(dict.fromkeys(name for _, summary in summaries for name in summary.metrics if name.startswith("test/")))
        table = Table("overrides", "run", *names)
        for job, summary in summaries:
            table.add_row(" ".join(job), summary.run_name, *(f"{summary.metrics[n]:.4f}" if n in summary.metrics else "" for n in names))
        Console().print(table)
    if failures:
        raise LosskitError(f"{len(failures)} of {len(jobs)} runs failed")


def _overlaid(spec: RunSpec, overrides: Overrides) -> tuple[dict[str, Any], dict[str, Any], dict[str, tuple[Any, Any]]]:
    """A saved config with new overrides on top; its choices; and where today's config tree would say something else than was saved."""
    composer = Composer(spec.config_dirs, spec.config_name)
    then = composer.compose(spec.overrides)
    now = composer.compose([*_without(spec.overrides, overrides), *overrides])
    base = then.resolved()
    return three_way(spec.config, base, now.resolved()), now.choices, differences(spec.config, base)


def _without(overrides: Overrides, replaced_by: Overrides) -> list[str]:
    """The overrides less those whose key is set anew."""
    keys = {text.split("=", 1)[0].lstrip("+~") for text in replaced_by}
    return [text for text in overrides if text.split("=", 1)[0].lstrip("+~") not in keys]


def _value_at(config: Any, key: str) -> str:
    from omegaconf import OmegaConf

    node = config if OmegaConf.is_config(config) else OmegaConf.create(config)
    parent, _, name = key.rpartition(".")
    holder = OmegaConf.select(node, parent) if parent else node
    try:
        value = OmegaConf.to_container(holder, resolve=False)[name]  # type: ignore[call-overload, index]
    except (KeyError, TypeError, ValueError):
        return "(deleted)"
    from losskit_cli.catalogue import as_text

    return as_text(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _stderr(quiet: bool) -> Console:
    return Console(stderr=True, quiet=quiet)


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
