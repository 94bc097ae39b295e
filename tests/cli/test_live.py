"""A sweep on the terminal while it runs: what is in the table, at the widths that terminals have, and that a pipe sees none of it."""

from __future__ import annotations

import io
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState
from rich.console import Console

from losskit_cli import live
from losskit_cli.live import LISTED, LiveTable, outcome_table, pareto
from sweeps.space import SearchSpace
from sweeps.study import Sweep
from tests.sweeps.test_study import create, plan_of

SPACE = ("loss=poly1,focal", "optimizer.lr=tag(log,interval(1e-4,1))", "loss.epsilon=interval(-1,5)", "model.dropout=interval(0,1)", "transform.dropout=1,2")
PARAMS = {"loss": "poly1", "optimizer.lr": 0.0123456, "loss.epsilon": -0.123456, "model.dropout": 0.123456, "transform.dropout": 2}
HERE = socket.gethostname()
LONG = "loss=poly1 lr=0.01235 epsilon=-0.1235 model.dropout=0.1235 transform.dropout=2"


def sweep_of(directory: Path, total: int = 4, *, directions: tuple[str, ...] = ("minimize",)) -> Sweep:
    plan = replace(plan_of(total, directions=directions), name="brave-owl", space=SearchSpace.parse(SPACE)[0].to_dict())
    return create(f"sqlite:///{directory}/sweeps.db", plan)


def begin(sweep: Sweep, worker: str = f"{HERE}-4711-abc123", reported: float | None = None) -> None:
    """Claim the next trial and give it its parameters."""
    claim = sweep.claim(worker)
    assert claim is not None
    distributions = SearchSpace.from_dict(sweep.plan.space).distributions
    for key, value in PARAMS.items():
        sweep.storage.set_trial_param(claim.trial_id, key, distributions[key].to_internal_repr(value), distributions[key])
    if reported is not None:
        sweep.storage.set_trial_intermediate_value(claim.trial_id, 1, reported)


def end(sweep: Sweep, number: int, state: TrialState, *values: float) -> None:
    sweep.study.tell(number, values or None, state=state)


def lines(table: LiveTable, width: int) -> list[str]:
    """The table as a terminal of that width shows it."""
    console = Console(width=width, file=io.StringIO())
    console.print(table.renderable())
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_only_the_parameters_give_way_to_a_narrow_terminal(tmp_path: Path, width: int) -> None:
    sweep = sweep_of(tmp_path)
    for _ in range(3):
        begin(sweep, reported=0.7654321)
    end(sweep, 0, TrialState.COMPLETE, 0.1234567)
    end(sweep, 1, TrialState.PRUNED)
    shown = lines(LiveTable(sweep), width)
    assert all(len(line) <= width for line in shown)
    assert shown[2].split() == ["trial", "state", "metric/0", "parameters", "time", "worker"]
    rows = [re.fullmatch(r"(\d)\s+([A-Z]+)\s+(0\.\d+)\s+(\S.*?\S)\s+([\d.]+s)\s+(\d*)\s*", line) for line in shown[3:]]
    assert [row.group(1, 2, 3, 6) for row in rows if row] == [
        ("0", "COMPLETE", "0.12346", ""), ("1", "PRUNED", "0.76543", ""), ("2", "RUNNING", "0.76543", "4711")
    ]  # fmt: skip
    for row in rows:
        assert row is not None and (row.group(4) == LONG if width == 140 else LONG.startswith(row.group(4).removesuffix("…")))
    assert "brave-owl  2 of 4 trials: 1 complete, 1 pruned, 0 failed, 1 running" in shown[0]
    assert "best metric/0 0.12346  loss=poly1 lr=0.01235" in shown[1]


def test_keys_are_as_short_as_tells_them_apart(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    begin(sweep)
    assert LONG in lines(LiveTable(sweep), 200)[-1]


def test_workers_are_named_by_their_process_and_by_their_host_where_there_are_several(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    begin(sweep, f"{HERE}-11-aaa")
    begin(sweep, f"{HERE}-12-bbb")
    assert [line.split()[-1] for line in lines(LiveTable(sweep), 100)[3:]] == ["11", "12"]
    begin(sweep, "node-7-13-ccc")
    assert [line.split()[-1] for line in lines(LiveTable(sweep), 100)[3:]] == [f"{HERE}-11", f"{HERE}-12", "node-7-13"]


def test_waiting_trials_are_counted_not_listed_and_of_the_ended_ones_the_last(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, live.SHOWN + 5)
    assert lines(LiveTable(sweep), 100)[1:] == [lines(LiveTable(sweep), 100)[1], "trial  state  metric/0  parameters  time  worker"]
    assert "nothing complete yet" in lines(LiveTable(sweep), 100)[1]
    for number in range(live.SHOWN + 2):
        begin(sweep)
        end(sweep, number, *((TrialState.FAIL,) if number == 3 else (TrialState.COMPLETE, 1.0 / (number + 1))))
    begin(sweep)
    shown = lines(LiveTable(sweep), 100)
    assert f"{live.SHOWN + 2} of {live.SHOWN + 5} trials: {live.SHOWN + 1} complete, 0 pruned, 1 failed, 1 running" in shown[0]
    assert [line.split()[:2] for line in shown[3:]] == [
        *([str(n), "FAIL" if n == 3 else "COMPLETE"] for n in range(2, live.SHOWN + 2)), [str(live.SHOWN + 2), "RUNNING"]
    ]  # fmt: skip


def test_several_objectives_have_a_column_each_and_a_front(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, directions=("minimize", "maximize"))
    for number, values in enumerate([(1.0, 1.0), (2.0, 2.0), (3.0, 0.0)]):
        begin(sweep)
        end(sweep, number, TrialState.COMPLETE, *values)
    begin(sweep)
    shown = lines(LiveTable(sweep), 80)
    assert "2 on the Pareto front" in shown[1]
    assert [line.split()[2:4] for line in shown[2:6]] == [["metric/0", "metric/1"], ["1", "1"], ["2", "2"], ["3", "0"]]
    assert pareto([(1.0, 0.25), (2.0, 1 / 3)]) == "(1, 0.25)  (2, 0.3333)"


def test_a_sweep_that_stops_says_why(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    begin(sweep)
    sweep.stop("5 trials in a row failed")
    assert lines(LiveTable(sweep), 80)[1].strip() == "stopping: 5 trials in a row failed"
    end(sweep, 0, TrialState.FAIL)
    assert lines(LiveTable(sweep), 80)[1].strip() == "stopped: 5 trials in a row failed"


def test_the_time_left_is_reckoned_by_the_pace_since_one_looks_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(tmp_path)
    begin(sweep)
    end(sweep, 0, TrialState.COMPLETE, 1.0)
    now = 100.0
    monkeypatch.setattr("losskit_cli.live.time.monotonic", lambda: now)
    table = LiveTable(sweep)
    assert "left" not in lines(table, 100)[0]  # nothing has ended yet that it has seen
    begin(sweep)
    end(sweep, 1, TrialState.COMPLETE, 1.0)
    now = 160.0
    assert lines(table, 100)[0].endswith("about 2m00s left")


def test_a_terminal_sees_it_redrawn_and_a_pipe_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(tmp_path)
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    for terminal, quiet in ((False, False), (True, True), (True, False)):
        out = io.StringIO()
        with LiveTable(sweep, Console(file=out, force_terminal=terminal, quiet=quiet, width=100)) as table:
            table.update(sweep.status())
            table.update(sweep.status())
        assert (out.getvalue().count("brave-owl") > 1) is (terminal and not quiet)
        assert terminal or not out.getvalue()


def test_the_table_at_the_end_lists_the_best_and_says_how_to_see_all(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, total=LISTED + 3)
    for number in range(LISTED + 3):
        begin(sweep)
        end(sweep, number, TrialState.COMPLETE, float(-number))
    table = outcome_table(sweep)
    assert [row["trial"] for row in table.rows] == [str(number) for number in range(LISTED + 2, 2, -1)]
    assert table.notes == ["the best 50 of 53 trials; all: losskit compare --sweep brave-owl --limit 53"]
