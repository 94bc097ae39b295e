"""What a paper claims, as an experiment says it: a baseline and a method as overrides, the metric, the seeds; and what runs of both say of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from components.validation import did_you_mean
from losskit_cli.errors import UsageError

if TYPE_CHECKING:
    from losskit_cli.catalogue import Catalogue
    from losskit_cli.statistics import Difference

ARM = "arm"
"""The key that chooses one side: ``losskit train experiment=poly1 arm=baseline``."""
METHOD, BASELINE = "method", "baseline"
LEAST_SEEDS = 5
TUNING_SEED = 1000  # the first of the seeds that tuning runs with: none of a claim's
MOST_TUNED = 12  # points of the small tuning, for each arm
KEYS = ("paper", "says", "shown_by", BASELINE, METHOD, "others", "metric", "better", "margin", "seeds", "tune", "notes")

Verdict = Literal["reproduced", "not seen here", "the other way", "no verdict"]


@dataclass(frozen=True)
class Claim:
    """The ``claim:`` block of an experiment.

    Attributes:
        name: of the experiment.
        paper: authors, title, year, arXiv id.
        says: what the paper claims, in one line.
        shown_by: what stands for the paper's setting here, in one line; empty: the experiment's description says it.
        arms: name -> overrides; ``method`` and ``baseline`` first, then others, which are shown and not judged.
        metric: that is compared.
        higher_is_better: of the metric.
        margin: how much worse than the baseline still counts as no worse; 0: the method has to be better.
        seeds: that every arm is run with.
        tune: overrides with choices that the arms share; each arm takes its best point by the validation split.
        notes: what was tried, where the claim was not seen; or anything else that a reader of the outcome should know.
    """

    name: str
    paper: str
    says: str
    shown_by: str
    arms: Mapping[str, tuple[str, ...]]
    metric: str
    higher_is_better: bool
    margin: float = 0.0
    seeds: tuple[int, ...] = tuple(range(LEAST_SEEDS))
    tune: tuple[str, ...] = ()
    notes: str = ""

    @classmethod
    def read(cls, name: str, node: Any) -> Claim:
        """The claim of experiment ``name`` from its plain ``claim:`` block.

        Raises:
            UsageError: a key that is missing, unknown or of the wrong form; it names the file's key.
        """
        where = f"experiment={name}: claim"
        if not isinstance(node, Mapping):
            raise UsageError(f"{where} takes keys and values ({', '.join(KEYS)}), but got {node!r}")
        for key in node:
            if key not in KEYS:
                raise UsageError(f"{where} has no {key!r}{did_you_mean(str(key), KEYS)} (it takes: {', '.join(KEYS)})")
        texts = {key: str(node.get(key) or "").strip() for key in ("paper", "says", "shown_by", "metric", "better", "notes")}
        for key in ("paper", "says", "metric", "better"):
            if not texts[key]:
                raise UsageError(f"{where} needs {key!r}")
        if texts["better"] not in ("higher", "lower"):
            raise UsageError(f"{where}.better must be higher or lower, but got {texts['better']!r}{did_you_mean(texts['better'], ('higher', 'lower'))}")
        others = node.get("others") or {}
        if not isinstance(others, Mapping) or {METHOD, BASELINE} & set(others):
            raise UsageError(f"{where}.others takes further arms by name, each a list of overrides, but got {others!r}")
        arms = {key: _overrides(f"{where}.{key}", node.get(key)) for key in (METHOD, BASELINE)}
        arms |= {str(key): _overrides(f"{where}.others.{key}", value) for key, value in others.items()}
        if arms[METHOD] == arms[BASELINE]:
            raise UsageError(f"{where}: method and baseline are the same")
        margin = node.get("margin", 0.0)
        if isinstance(margin, bool) or not isinstance(margin, int | float) or margin < 0:
            raise UsageError(f"{where}.margin must be a number >= 0, but got {margin!r}")
        tune = _overrides(f"{where}.tune", node.get("tune") or [])
        if tune and texts["metric"].partition("/")[0] != "test":
            raise UsageError(f"{where}.tune goes by the validation split's share of claim.metric, so that must be a test/…, but is {texts['metric']!r}")
        better = texts["better"] == "higher"
        seeds = _seeds(where, node)
        return cls(name, texts["paper"], texts["says"], texts["shown_by"], arms, texts["metric"], better, float(margin), seeds, tune, texts["notes"])

    def arm(self, name: Any = None) -> str:
        """The arm of that name, ``method`` without one.

        Raises:
            UsageError: there is none (with the nearest).
        """
        name = METHOD if name is None else str(name)
        if name not in self.arms:
            raise UsageError(f"there is no {ARM}={name}{did_you_mean(name, self.arms)} (experiment={self.name} has: {', '.join(self.arms)})")
        return name

    @cached_property
    def tuning_metric(self) -> str:
        """What tuning goes by: the same metric of the validation split."""
        return f"val/{self.metric.partition('/')[2]}"

    def verdict(self, difference: Difference) -> Verdict:
        """What the paired difference method − baseline says: its whole 95 % interval has to lie on one side."""
        low, high = difference.low, difference.high
        if low is None or high is None:
            return "no verdict"
        worst, best = (low, high) if self.higher_is_better else (-high, -low)
        if worst > -self.margin:
            return "reproduced"
        return "the other way" if best < -self.margin else "not seen here"


def claims_of(catalogue: Catalogue) -> list[Claim]:
    """The claims of all experiments, by name; files alone are read."""
    options = catalogue.options("experiment")
    return [Claim.read(option.name, option.body["claim"]) for option in options if option.body.get("claim") is not None]


def _overrides(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) and "=" in text for text in value):
        raise UsageError(f"{where} must be a list of overrides such as [loss=poly1, loss.epsilon=2], but got {value!r}")
    return tuple(value)


def _seeds(where: str, node: Mapping[str, Any]) -> tuple[int, ...]:
    given = node.get("seeds", LEAST_SEEDS)
    seeds: Iterable[Any] = range(given) if isinstance(given, int) and not isinstance(given, bool) else given if isinstance(given, list) else ()
    found = tuple(seeds)
    if not all(isinstance(seed, int) and 0 <= seed < TUNING_SEED for seed in found) or len(set(found)) < max(len(found), LEAST_SEEDS):
        takes = f"a number of seeds, {LEAST_SEEDS} or more, or a list of as many different ones, each below {TUNING_SEED}"
        raise UsageError(f"{where}.seeds must be {takes}, but got {given!r}")
    return found


__all__ = ["ARM", "BASELINE", "METHOD", "Claim", "claims_of"]
