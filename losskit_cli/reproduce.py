"""``losskit reproduce``: run a paper's claim, the baseline against the method over the same seeds, and say what came of it.

A claim is a sweep of arms and seeds, resumable and with as many workers as any other; before it, where the claim says what its arms share and
need tuned, a sweep of that with other seeds, judged by the validation split.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from json import dumps
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from components.validation import did_you_mean
from losskit_cli.claims import ARM, BASELINE, METHOD, MOST_TUNED, TUNING_SEED, Claim, Verdict, claims_of
from losskit_cli.compare import json_ready, plus_minus
from losskit_cli.compose import Composer
from losskit_cli.errors import LosskitError, RunError, UsageError
from losskit_cli.statistics import Difference, Summary, compare_with, summarise
from losskit_cli.sweep import PartOf, SweepInterrupted, in_words, run_to_end
from losskit_cli.sweep_plan import key_of, make_plan
from losskit_cli.sweep_run import SweepRun
from losskit_cli.tracking.contents import PREFIX
from sweeps.settings import Plan
from sweeps.study import DIRECTORY, Sweep, runs_of

PICTURE = "claim.png"
STYLES: Mapping[Verdict, str] = {"reproduced": "bold green", "not seen here": "bold yellow", "the other way": "bold red", "no verdict": "bold"}


@dataclass(frozen=True)
class Outcome:
    """What the runs of a claim say.

    Attributes:
        claim: what was to be seen.
        values: arm -> seed -> the metric.
        tuned: arm -> the overrides that tuning chose for it.
        sweep: name of the sweep of the runs.
        overrides: the user's own.
        picture: the file.
        seconds: of training and testing all runs of the sweep, one after the other.
    """

    claim: Claim
    values: Mapping[str, Mapping[int, float]]
    tuned: Mapping[str, Sequence[str]]
    sweep: str
    overrides: Sequence[str] = ()
    picture: str = ""
    seconds: float = 0.0

    @cached_property
    def summaries(self) -> Mapping[str, Summary]:
        """Of each arm."""
        return {arm: summarise([*values.values()]) for arm, values in self.values.items()}

    @cached_property
    def differences(self) -> Mapping[str, Difference]:
        """Of each arm: arm − baseline, seed by seed."""
        return {arm: compare_with(values, self.values[BASELINE]) for arm, values in self.values.items()}

    @property
    def verdict(self) -> Verdict:
        return self.claim.verdict(self.differences[METHOD])

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        claim, difference = self.claim, self.differences[METHOD]
        arms = {
            arm: {"overrides": [*claim.arms[arm], *self.tuned[arm]], "values": {str(seed): v for seed, v in values.items()}, "mean": self.summaries[arm].mean}
            for arm, values in self.values.items()
        }
        paired = {"difference": difference.difference, "low": difference.low, "high": difference.high, "effect": difference.effect, "pairs": difference.n}
        said = {"name": claim.name, "paper": claim.paper, "says": claim.says, "metric": claim.metric, "better": "higher" if claim.higher_is_better else "lower"}
        more = {"margin": claim.margin, "arms": arms, **paired, "verdict": self.verdict, "sweep": self.sweep, "picture": self.picture, "seconds": self.seconds}
        ready: dict[str, Any] = json_ready({**said, **more})
        return ready


def run_reproduce(
    words: Sequence[str],
    config_dirs: Sequence[Path],
    config_name: str,
    *,
    every: bool,
    listed: bool,
    seeds: int | None,
    anew: bool,
    output: Path | None,
    dry_run: bool,
    json: bool,
    quiet: bool,
) -> None:
    """``losskit reproduce``.

    Raises:
        UsageError: no claim of that name, a claim that does not compose.
        RunError: the runs of a claim failed.
    """
    composer = Composer(config_dirs, config_name)
    claims = {claim.name: claim for claim in claims_of(composer.catalogue)}
    names, overrides = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if listed:
        _list([*claims.values()], json=json)
        return
    for name in names:
        if name not in claims:
            _refuse(composer, name, claims)
    if bool(names) == every:
        raise UsageError("say which claim (losskit reproduce poly1), or --all; losskit reproduce --list shows what there is")
    if output is not None and not every:
        raise UsageError("--output is where --all writes its table")
    chosen = [claims[name] for name in (claims if every else names)]
    if seeds is not None:
        if seeds < 2:
            raise UsageError(f"--seeds must be 2 or more, as the interval is of differences between seeds, but got {seeds}")
        chosen = [replace(claim, seeds=tuple(range(seeds))) for claim in chosen]
    if dry_run:
        for claim in chosen:
            _show_plan(claim, Reproduction(composer, claim, overrides).plans(), json=json)
        return
    _run_all(composer, chosen, overrides, every=every, anew=anew, output=output, json=json, quiet=quiet)


def _run_all(
    composer: Composer, claims: Sequence[Claim], overrides: Sequence[str], *, every: bool, anew: bool, output: Path | None, json: bool, quiet: bool
) -> None:
    out = Console(stderr=True, quiet=quiet or json)
    outcomes: list[Outcome] = []
    failed: dict[str, str] = {}
    page = output or Path("claims.md")
    for number, claim in enumerate(claims, start=1):
        if len(claims) > 1:
            out.rule(f"{number} of {len(claims)}: {claim.name}", style="dim")
        try:
            outcome = Reproduction(composer, claim, overrides, anew=anew).run(json=json, quiet=quiet)
        except SweepInterrupted:
            raise
        except LosskitError as error:
            if len(claims) == 1:
                raise
            failed[claim.name] = str(error)
            out.print(f"{claim.name}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            continue
        outcomes.append(outcome)
        if not json and not quiet:
            _tell(outcome)
        if every:  # after each, so that a table is there of what is done, whatever comes
            _write_page(page, outcomes, overrides)
    if json:
        found = [outcome.as_dict() for outcome in outcomes]
        sys.stdout.write(dumps({"claims": found, "failed": failed} if every or len(claims) > 1 else found[0]) + "\n")
    elif every and not quiet:
        Console().print(f"{len(outcomes)} of {len(claims)} claims: {page}", markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise RunError(f"{len(failed)} of {len(claims)} claims could not be run: {', '.join(failed)}")


class Reproduction:
    """Runs one claim.

    Args:
        composer: knows the experiment.
        claim: what to run.
        overrides: the user's own, for every run (``trainer.max_epochs=2``) or for the sweeps (``sweep.workers=4``).
        anew: run again what was run before.
    """

    def __init__(self, composer: Composer, claim: Claim, overrides: Sequence[str] = (), *, anew: bool = False) -> None:
        self.composer, self.claim, self.overrides, self.anew = composer, claim, list(overrides), anew
        given = {key_of(text) for text in overrides}
        for key in (ARM, "seed", "experiment", "sweep.name", "sweep.seeds", "sweep.objectives"):
            if key in given:
                raise UsageError(f"{key}=… is the claim's own matter here; one of its runs: losskit train experiment={claim.name} {ARM}=… seed=…")
        self.tune = [text for text in claim.tune if key_of(text) not in given]
        self.command = " ".join(["losskit reproduce", claim.name, *self.overrides])

    def run(self, *, json: bool = False, quiet: bool = False) -> Outcome:
        """Run what is not there yet, and say what it says."""
        tuned: Mapping[str, Sequence[str]] = dict.fromkeys(self.claim.arms, ())
        if self.tune:
            plan = self.tuning_plan()
            tuning = run_to_end(plan, PartOf(self.command), self._namer(plan, "-tuning"), json=json, quiet=quiet)
            tuned = best_points(tuning, self.claim)
        plan, kept = self.plan(tuned), PartOf(self.command, lambda sweep, run: self._keep(sweep, run, tuned))
        return self.outcome(run_to_end(plan, kept, self._namer(plan), json=json, quiet=quiet), tuned)

    def plans(self) -> list[Plan]:
        """What would be run; that of the claim itself with every arm at the first point of what is tuned."""
        tuning = [self.tuning_plan()] if self.tune else []
        first = tuning[0].points[0] if tuning else {}
        chosen = [f"{key}={value}" for key, value in first.items() if key != ARM]
        return [*tuning, self.plan(dict.fromkeys(self.claim.arms, chosen))]

    def tuning_plan(self) -> Plan:
        """Every arm at every point, with a seed of its own and nothing of the test split."""
        claim = self.claim
        plan = self._plan([f"{ARM}={','.join(claim.arms)}", *self.tune, f"seed={TUNING_SEED}", "test=false"], claim.tuning_metric)
        if plan.total > MOST_TUNED * len(claim.arms):
            raise UsageError(f"experiment={claim.name}: claim.tune has {plan.total // len(claim.arms)} points, and it is to be small: at most {MOST_TUNED}")
        return plan

    def plan(self, tuned: Mapping[str, Sequence[str]]) -> Plan:
        """Every arm, as it was tuned, with every seed."""
        arms = self.claim.arms
        keys = [key_of(text) for text in next(iter(tuned.values()))]
        rows = {ARM: [*arms], **{key: [chosen_in(tuned[arm])[key] for arm in arms] for key in keys}}
        together = [f"{key}=tag('zip=claim',choice({','.join(values)}))" for key, values in rows.items()]
        of_arms = together if keys else [f"{ARM}={','.join(arms)}"]  # a zip is of two or more
        return self._plan([*of_arms, f"seed={','.join(map(str, self.claim.seeds))}"], self.claim.metric)

    def _plan(self, more: Sequence[str], metric: str) -> Plan:
        direction = "maximize" if self.claim.higher_is_better else "minimize"
        of_sweep = [f"sweep.objectives=['{metric}']", f"sweep.directions=[{direction}]"]
        with in_words():
            return make_plan(self.composer, [f"experiment={self.claim.name}", *self.overrides, *more, *of_sweep], every_point=True, name="claim")[0]

    def _namer(self, plan: Plan, suffix: str = "") -> Callable[[Container[str]], str]:
        """Names a sweep by what it is: the same claim of the same configuration has the same name, so that it is gone on with."""
        name = f"claim-{self.claim.name}{suffix}-{plan.fingerprint[:6]}"

        def name_beside(there: Container[str]) -> str:
            unused = next(n for n in count(1) if numbered(name, n) not in there)
            return numbered(name, unused if self.anew else max(unused - 1, 1))

        return name_beside

    def outcome(self, sweep: Sweep, tuned: Mapping[str, Sequence[str]]) -> Outcome:
        """What the finished sweep's runs say."""
        claim, seconds = self.claim, 0.0
        values: dict[str, dict[int, float]] = {arm: {} for arm in claim.arms}
        for trial in sweep.trials(TrialState.COMPLETE):
            for run in runs_of(trial).values():
                summary = run["summary"]
                chosen = chosen_in(trial.user_attrs["losskit:overrides"])
                values[chosen[ARM]][int(chosen["seed"])] = float(run["metrics"][claim.metric])
                seconds += float(summary["duration_s"])
        for arm, found in values.items():
            if not any(math.isfinite(value) for value in found.values()):
                raise RunError(f"{claim.name}: no run of {ARM}={arm} has a finite {claim.metric}; look at them: losskit compare --sweep {sweep.plan.name}")
        ordered = {arm: {seed: values[arm][seed] for seed in claim.seeds if seed in values[arm]} for arm in claim.arms}
        picture = Path(sweep.study.user_attrs.get(DIRECTORY, ".")) / PICTURE
        return Outcome(claim, ordered, tuned, sweep.plan.name, self.overrides, str(picture) if picture.is_file() else "", seconds)

    def _keep(self, sweep: Sweep, run: SweepRun, tuned: Mapping[str, Sequence[str]]) -> None:
        """The picture and the figures, with the sweep's run."""
        from losskit_cli.claim_plot import draw_claim

        try:
            outcome = self.outcome(sweep, tuned)
        except LosskitError:
            return  # said by whoever asked for the outcome
        difference = outcome.differences[METHOD]
        draw_claim(outcome, run.directory / PICTURE)
        run.keep(run.directory / PICTURE)
        if run.journal is None:
            return
        figures = {"difference": difference.difference, "low": difference.low, "high": difference.high, "effect": difference.effect}
        run.journal.metrics({f"claim/{key}": value for key, value in figures.items() if value is not None and math.isfinite(value)}, step=0)
        run.journal.tags({f"{PREFIX}claim": self.claim.name, f"{PREFIX}verdict": outcome.verdict})


def numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def chosen_in(overrides: Sequence[str]) -> dict[str, str]:
    """Key -> value of a trial's overrides."""
    return {key_of(text): text.partition("=")[2] for text in overrides}


def best_points(tuning: Sweep, claim: Claim) -> dict[str, list[str]]:
    """For each arm, the tuned overrides of its best run."""
    found: dict[str, tuple[float, list[str]]] = {}
    for trial in tuning.trials(TrialState.COMPLETE):
        overrides = trial.user_attrs["losskit:overrides"]
        arm = chosen_in(overrides)[ARM]
        value = float(trial.value) * (-1 if claim.higher_is_better else 1)  # type: ignore[arg-type]
        if math.isfinite(value) and (arm not in found or value < found[arm][0]):
            found[arm] = value, [text for text in overrides if key_of(text) not in (ARM, "seed")]
    for arm in claim.arms:
        if arm not in found:
            raise RunError(f"{claim.name}: no point of claim.tune trains {ARM}={arm}; look at its runs: losskit compare --sweep {tuning.plan.name}")
    return {arm: found[arm][1] for arm in claim.arms}


# -- telling ------------------------------------------------------------------------------------------------------------------
def _list(claims: Sequence[Claim], *, json: bool) -> None:
    if json:
        sys.stdout.write(dumps([{"name": claim.name, "paper": claim.paper, "says": claim.says, "arms": [*claim.arms]} for claim in claims]) + "\n")
        return
    table = Table("claim", "says", "paper", box=None, header_style="dim")
    for claim in claims:
        table.add_row(claim.name, claim.says, claim.paper)
    Console().print(table)


def _refuse(composer: Composer, name: str, claims: Mapping[str, Claim]) -> None:
    if name in composer.catalogue.option_names("experiment"):
        raise UsageError(f"experiment={name} claims nothing: its file has no claim: block (experiments that do: {', '.join(claims)})")
    raise UsageError(f"there is no claim {name!r}{did_you_mean(name, claims)} (there is: {', '.join(claims) or 'none'})")


def _show_plan(claim: Claim, plans: Sequence[Plan], *, json: bool) -> None:
    if json:
        sys.stdout.write(dumps({"name": claim.name, "runs": [plan.total for plan in plans], "arms": {k: [*v] for k, v in claim.arms.items()}}) + "\n")
        return
    out = Console()
    out.print(f"{claim.name}: {' + '.join(str(plan.total) for plan in plans)} runs", markup=False, highlight=False)
    for arm, overrides in claim.arms.items():
        out.print(f"  {arm:<10} {' '.join(overrides)}", markup=False, highlight=False, soft_wrap=True)
    if len(plans) > 1:
        out.print(f"  tuned, by {claim.tuning_metric} with seed {TUNING_SEED}: {' '.join(claim.tune)}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"  judged by {claim.metric} ({better(claim)}) over the seeds {', '.join(map(str, claim.seeds))}", markup=False, highlight=False)


def _tell(outcome: Outcome) -> None:
    claim, out = outcome.claim, Console()
    out.print(f"\n{claim.paper}\nclaim: {claim.says}", markup=False, highlight=False, soft_wrap=True)
    if claim.shown_by:
        out.print(f"here: {claim.shown_by}", markup=False, highlight=False, soft_wrap=True)
    tuned = any(outcome.tuned.values())
    table = Table("", claim.metric, "− baseline", "Hedges' g", *(["tuned"] if tuned else []), header_style="dim")
    for arm in claim.arms:
        difference = outcome.differences[arm]
        compared = ["", ""] if arm == BASELINE else [difference_text(difference), effect_text(difference)]
        table.add_row(arm, mean_text(outcome.summaries[arm]), *compared, *([" ".join(outcome.tuned[arm])] if tuned else []))
    out.print(table)
    pairs = outcome.differences[METHOD].n
    out.print(f"[{STYLES[outcome.verdict]}]{outcome.verdict}[/]: {verdict_text(outcome)} ({pairs} pairs of runs)", highlight=False, soft_wrap=True)
    if claim.notes:
        out.print(f"note: {claim.notes}", markup=False, highlight=False, soft_wrap=True)
    if outcome.picture:
        out.print(f"picture    {outcome.picture}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"its runs   losskit compare --sweep {outcome.sweep} --group-by {ARM} --over seed", markup=False, highlight=False, soft_wrap=True)


def better(claim: Claim) -> str:
    return "higher is better" if claim.higher_is_better else "lower is better"


def mean_text(summary: Summary) -> str:
    """Mean ± half of its 95 % interval."""
    if summary.mean is None:
        return "not finite"
    text = plus_minus(summary.mean, (summary.high - summary.low) / 2) if summary.low is not None and summary.high is not None else f"{summary.mean:.4g}"
    return f"{text} ({summary.nonfinite} not finite)" if summary.nonfinite else text


def difference_text(difference: Difference) -> str:
    """The difference and its 95 % interval, as ``+0.021 [+0.012, +0.030]``."""
    if difference.difference is None:
        return difference.why_not or "none"
    if difference.low is None or difference.high is None:
        return f"{difference.difference:+.3g} ({difference.why_not})"
    digits = max(0, 1 - math.floor(math.log10(max(difference.high - difference.low, 1e-12)))) if difference.high > difference.low else 3
    digits = min(digits, 6)
    return f"{difference.difference:+.{digits}f} [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"


def effect_text(difference: Difference) -> str:
    return "" if difference.effect is None or not math.isfinite(difference.effect) else f"{difference.effect:+.1f}"


def verdict_text(outcome: Outcome) -> str:
    claim = outcome.claim
    no_worse = f", no worse being within {claim.margin:g}" if claim.margin else ""
    return f"{METHOD} − {BASELINE} = {difference_text(outcome.differences[METHOD])} in {claim.metric}, 95 % interval, {better(claim)}{no_worse}"


# -- the page -----------------------------------------------------------------------------------------------------------------
HEAD = """\
# Claims

What papers claim, run here: each row is a command. A claim is run as the same small experiment with a baseline and with the method,
over the same seeds; the difference is taken seed by seed, and its 95 % interval (paired t) decides: all of it on the better side is
*reproduced*, all of it on the other side *the other way*, else *not seen here*. Where something is tuned, both arms had the same small
tuning of what they share, by the validation split and with other seeds. These are small stand-ins for the papers' experiments: a claim
that is not seen here may well hold where it was made.
"""


def _write_page(page: Path, outcomes: Sequence[Outcome], overrides: Sequence[str]) -> None:
    """The table of all claims so far."""
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.verdict] = counts.get(outcome.verdict, 0) + 1
    lines = [HEAD]
    telling = [text for text in overrides if key_of(text).partition(".")[0] not in ("sweep", "tracking")]
    if telling:
        lines.append(f"Run with `{' '.join(telling)}`.\n")
    lines.append(f"{len(outcomes)} claims: {', '.join(f'{count} {verdict}' for verdict, count in sorted(counts.items(), key=lambda item: -item[1]))}.\n")
    lines.append("| command | metric | baseline | method | difference [95 %] | g | verdict |")
    lines.append("|---|---|---|---|---|---|---|")
    for outcome in outcomes:
        claim, difference = outcome.claim, outcome.differences[METHOD]
        arrow = "↑" if claim.higher_is_better else "↓"
        cells = [f"`losskit reproduce {claim.name}`", f"{claim.metric} {arrow}", mean_text(outcome.summaries[BASELINE]), mean_text(outcome.summaries[METHOD])]
        cells += [difference_text(difference), effect_text(difference), f"**{outcome.verdict}**" if outcome.verdict == "reproduced" else outcome.verdict]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines.append("\n## What is claimed, and by what it is shown\n")
    for outcome in outcomes:
        claim = outcome.claim
        text = f"- `{claim.name}`: {claim.says} ({claim.paper})."
        text += f" Here: {claim.shown_by}." if claim.shown_by else ""
        others = [f"{arm} {mean_text(outcome.summaries[arm])}" for arm in claim.arms if arm not in (BASELINE, METHOD)]
        text += f" Beside them: {'; '.join(others)}." if others else ""
        chosen = {arm: " ".join(values) for arm, values in outcome.tuned.items() if values}
        text += f" Tuned: {'; '.join(f'{arm} {values}' for arm, values in chosen.items())}." if chosen else ""
        text += f" Note: {claim.notes}." if claim.notes else ""
        lines.append(textwrap.fill(text, 180, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    page.parent.mkdir(parents=True, exist_ok=True)
    try:
        page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {page}: {error}") from error


__all__ = ["Outcome", "Reproduction", "run_reproduce"]
