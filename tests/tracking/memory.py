"""Runs without a store file, for what only looks at runs."""

from __future__ import annotations

from typing import Any

from losskit_cli.tracking.store import Point, RunInfo, Store


class MemoryStore(Store):
    """A store of the runs that it is given by :meth:`add`."""

    def __init__(self) -> None:
        super().__init__("memory")
        self.kept: list[RunInfo] = []
        self.histories: dict[tuple[str, str], list[Point]] = {}
        self.artifacts: dict[tuple[str, str], bytes] = {}

    def add(self, name: str, metrics: dict[str, Any] | None = None, *, status: str = "FINISHED", duration: float | None = 10.0, **given: Any) -> RunInfo:
        """``metrics``: key -> value or history; ``params``, ``tags``, ``options`` (group -> option) and ``artifacts`` as they are."""
        run_id = f"{len(self.kept):032x}"
        last: dict[str, float] = {}
        for key, values in (metrics or {}).items():
            points = [Point(step, float(step), v) for step, v in enumerate(values if isinstance(values, list) else [values])]
            self.histories[run_id, key], last[key] = points, points[-1].value
        tags = {**given.get("tags", {}), **{f"losskit.{group}": option for group, option in given.get("options", {}).items()}}
        if duration is not None:
            tags["losskit.duration_s"] = str(duration)
        for path, content in given.get("artifacts", {}).items():
            self.artifacts[run_id, path] = content
        run = RunInfo(run_id, name, status, "losskit", 0.0, None, given.get("params", {}), tags, last, dict.fromkeys(last, 0), "", self)
        self.kept.insert(0, run)
        return run

    def runs(self, experiment: str | None = None) -> list[RunInfo]:
        return [run for run in self.kept if experiment in (None, run.experiment)]

    def names(self) -> list[tuple[str, str]]:
        return [(run.run_id, run.name) for run in self.kept]

    def get(self, run_id: str) -> RunInfo:
        return next(run for run in self.kept if run.run_id == run_id)

    def history(self, run_id: str, key: str) -> list[Point]:
        return self.histories[run_id, key]

    def artifact(self, run: RunInfo, name: str) -> bytes | None:
        return self.artifacts.get((run.run_id, name))
