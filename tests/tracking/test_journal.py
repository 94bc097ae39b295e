"""The journal: what is written can be read, nothing is lost or doubled, and it costs next to nothing."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from losskit_cli.errors import RunError
from losskit_cli.tracking.journal import JOURNAL_FILE, Digest, Journal, last_steps, read_records
from losskit_cli.tracking.lightning_logger import FlushBeforeCheckpoint, JournalLogger


def records(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    return [r for _, r in read_records(run_dir / JOURNAL_FILE) if kind in (None, r["t"])]


def metric_values(run_dir: Path, key: str) -> list[tuple[int, float]]:
    return [(r["s"], float(r["d"][key])) for r in records(run_dir, "m") if key in r["d"]]


def write(run_dir: Path, steps: range, end: str | None = "FINISHED") -> None:
    journal = Journal(run_dir)
    journal.start({"name": "run"})
    for step in steps:
        journal.metrics({"loss": float(step)}, step)
    if end:
        journal.end(end)
    else:
        journal.close()


class TestWriting:
    def test_everything_is_read_back_in_order(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        journal.start({"name": "a run", "tags": {"losskit.loss": "focal"}, "params": {"loss.gamma": 3}, "texts": {"config.yaml": "a: ü\n"}})
        journal.metrics({"loss": 0.5}, 10, timestamp=12.5)
        journal.artifact("x.ckpt", "checkpoints", when="end")
        journal.end("FAILED", "it broke")
        start, tags, params, text, metrics, artifact, end = records(tmp_path)
        assert start["name"] == "a run" and start["session"] == 1
        assert tags["d"] == {"losskit.loss": "focal"} and params["d"] == {"loss.gamma": "3"}
        assert (text["to"], text["text"]) == ("config.yaml", "a: ü\n")
        assert (metrics["s"], metrics["ts"], metrics["d"]) == (10, 12500, {"loss": 0.5})
        assert artifact == {"t": "a", "path": str(Path("x.ckpt").absolute()), "to": "checkpoints", "when": "end"}
        assert (end["status"], end["error"]) == ("FAILED", "it broke")

    def test_lines_are_strict_json_also_for_nan_and_infinities(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        journal.start({})
        journal.metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1e-300}, 0)
        journal.end("FINISHED")
        assert "NaN" not in (tmp_path / JOURNAL_FILE).read_text() and "Infinity" not in (tmp_path / JOURNAL_FILE).read_text()
        (values,) = [r["d"] for r in records(tmp_path, "m")]
        assert math.isnan(float(values["a"])) and float(values["b"]) == math.inf and float(values["c"]) == -math.inf and values["d"] == 1e-300

    def test_the_same_value_at_the_same_step_is_kept_once(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        journal.start({})
        journal.metrics({"train/loss": 0.5, "epoch": 1}, 10)
        journal.metrics({"val/loss": 0.6, "epoch": 1}, 10)
        journal.metrics({"train/loss": 0.4, "epoch": 1}, 10)  # another value is another entry
        journal.end("FINISHED")
        assert metric_values(tmp_path, "epoch") == [(10, 1.0)]
        assert metric_values(tmp_path, "train/loss") == [(10, 0.5), (10, 0.4)]

    def test_entries_reach_the_disk_by_themselves(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, flush_seconds=0.05)
        journal.start({})
        journal.metrics({"loss": 1.0}, 1)
        end = time.monotonic() + 5
        while not metric_values(tmp_path, "loss") and time.monotonic() < end:
            time.sleep(0.01)
        assert metric_values(tmp_path, "loss") == [(1, 1.0)]
        journal.close()

    def test_many_entries_are_written_before_the_time_is_up(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, flush_seconds=60, flush_entries=100)
        journal.start({})
        for step in range(250):
            journal.metrics({"loss": float(step)}, step)
        end = time.monotonic() + 5
        while len(metric_values(tmp_path, "loss")) < 100 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(metric_values(tmp_path, "loss")) >= 100
        journal.close()

    def test_a_checkpoint_counts_on_what_was_logged_before_it(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, flush_seconds=60)
        journal.start({})
        journal.metrics({"loss": 1.0}, 7)
        FlushBeforeCheckpoint(journal).on_save_checkpoint(None, None, {})  # type: ignore[arg-type]
        assert metric_values(tmp_path, "loss") == [(7, 1.0)]
        journal.close()

    def test_a_status_that_mlflow_does_not_know_is_refused(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        journal.start({})
        with pytest.raises(ValueError, match="FINISHED, FAILED, KILLED, but got 'DONE'"):
            journal.end("DONE")
        journal.close()

    def test_one_directory_has_one_training(self, tmp_path: Path) -> None:
        first = Journal(tmp_path)
        with pytest.raises(RunError, match="another process is training in"):
            Journal(tmp_path, lock_timeout=0.1)
        first.close()
        Journal(tmp_path, lock_timeout=0.1).close()


class TestFullDisk:
    def test_it_is_named_and_loses_nothing_that_was_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        journal = Journal(tmp_path, flush_seconds=60)
        journal.start({})
        journal.metrics({"loss": 1.0}, 1)
        journal.flush()
        real = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: half_then_full(real, fd, data))
        journal.metrics({"loss": 2.0}, 2)
        with pytest.raises(RunError, match=r"the disk is full: cannot write .*tracking\.jsonl"):
            journal.flush()
        with pytest.raises(RunError, match="the disk is full"):
            journal.metrics({"loss": 3.0}, 3)
        assert (tmp_path / JOURNAL_FILE).read_bytes().endswith(b"\n")
        monkeypatch.setattr(os, "write", real)
        journal.end("FAILED", "the disk was full")  # there is room again: what was in memory comes first
        assert metric_values(tmp_path, "loss") == [(1, 1.0), (2, 2.0)]
        assert records(tmp_path)[-1]["status"] == "FAILED" and journal.unwritten_end is None

    def test_the_end_is_kept_when_it_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        journal = Journal(tmp_path, flush_seconds=60)
        journal.start({})
        monkeypatch.setattr(os, "write", lambda fd, data: half_then_full(os.write, fd, b""))
        journal.end("FAILED", "the disk is full")
        assert journal.unwritten_end is not None and journal.unwritten_end["status"] == "FAILED"

    def test_training_hears_of_it_at_its_next_entry(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        journal = Journal(tmp_path, flush_seconds=0.05)
        journal.start({})
        monkeypatch.setattr(os, "write", lambda fd, data: half_then_full(os.write, fd, b""))
        journal.metrics({"loss": 1.0}, 1)
        with pytest.raises(RunError, match="the disk is full"):
            for step in range(2, 100):
                time.sleep(0.02)
                journal.metrics({"loss": 1.0}, step)
        journal.end("FAILED")


def half_then_full(write: Any, fd: int, data: bytes) -> int:
    if len(data) > 10:
        return int(write(fd, data[: len(data) // 2]))
    raise OSError(errno.ENOSPC, "No space left on device")


class TestResume:
    def test_what_was_logged_is_not_logged_again(self, tmp_path: Path) -> None:
        write(tmp_path, range(20), end=None)
        journal = Journal(tmp_path)
        assert journal.resumed and journal.session == 2
        assert journal.already_logged("loss", 19) and not journal.already_logged("loss", 20) and not journal.already_logged("other", 0)
        journal.start({})
        for step in range(10, 30):  # from the checkpoint at step 10
            journal.metrics({"loss": float(step), "new": 0.0}, step)
        journal.end("FINISHED")
        assert metric_values(tmp_path, "loss") == [(step, float(step)) for step in range(30)]
        assert [step for step, _ in metric_values(tmp_path, "new")] == list(range(10, 30))

    @pytest.mark.parametrize("rest", ['{"t":"m","s":5,"ts":1,"d":{"lo', "{", '{"t":"m","s":5,"ts":1,"d":{"loss":5.0}}'])
    def test_a_half_written_last_line_is_dropped(self, tmp_path: Path, rest: str) -> None:
        write(tmp_path, range(5), end=None)
        with (tmp_path / JOURNAL_FILE).open("a") as file:
            file.write(rest)
        assert last_steps(tmp_path / JOURNAL_FILE) == {"loss": 4}
        write(tmp_path, range(3, 8))
        assert metric_values(tmp_path, "loss") == [(step, float(step)) for step in range(8)]

    def test_a_journal_of_nothing_but_half_a_line(self, tmp_path: Path) -> None:
        (tmp_path / JOURNAL_FILE).write_text('{"t":"st')
        write(tmp_path, range(2))
        assert metric_values(tmp_path, "loss") == [(0, 0.0), (1, 1.0)]

    def test_an_unreadable_line_is_passed_over(self, tmp_path: Path) -> None:
        write(tmp_path, range(2), end=None)
        with (tmp_path / JOURNAL_FILE).open("a") as file:
            file.write("\0\0\0\n[1]\n")
        write(tmp_path, range(4))
        assert metric_values(tmp_path, "loss") == [(step, float(step)) for step in range(4)]

    def test_on_another_machine_the_store_knows_what_was_logged(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, already_logged={"loss": 9})
        assert journal.resumed and journal.already_logged("loss", 9)
        journal.start({})
        for step in range(5, 12):
            journal.metrics({"loss": float(step)}, step)
        journal.end("FINISHED")
        assert metric_values(tmp_path, "loss") == [(10, 10.0), (11, 11.0)]

    def test_the_digest_adds_up_sessions_and_leaves_out_the_time_between(self) -> None:
        digest = Digest(lambda key: key == "loss")
        for record in (
            {"t": "start", "session": 1, "uid": "u", "time": 1000},
            {"t": "m", "s": 1, "ts": 5000, "d": {"loss": "nan", "other": 1.0}},
            {"t": "start", "session": 2, "uid": "u", "time": 100_000},  # the first session was killed
            {"t": "m", "s": 2, "ts": 101_000, "d": {"loss": 2.0}},
            {"t": "end", "status": "FINISHED", "error": None, "time": 103_000},
        ):
            digest.feed(record)
        assert digest.seconds == pytest.approx(4 + 3) and digest.sessions == 2 and not digest.open
        assert list(digest.curves) == ["loss"] and digest.curves["loss"][1] == (2, 2.0)


class TestLogger:
    def test_it_writes_to_the_journal(self, tmp_path: Path) -> None:
        import torch

        journal = Journal(tmp_path)
        logger = JournalLogger(journal, name="exp", version="run")
        journal.start({})
        logger.log_metrics({"loss": torch.tensor(0.25), "lr": 0.5}, step=3)
        logger.log_metrics({"other": 1.0})  # no step: the last one
        logger.log_hyperparams({"a": 1})
        logger.finalize("success")
        journal.end("FINISHED")
        assert metric_values(tmp_path, "loss") == [(3, 0.25)] and metric_values(tmp_path, "other") == [(3, 1.0)]
        assert (logger.name, logger.version, logger.save_dir, logger.log_dir) == ("exp", "run", str(tmp_path), str(tmp_path))

    def test_other_ranks_write_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from lightning.pytorch.utilities import rank_zero_only

        journal = Journal(tmp_path)
        journal.start({})
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        JournalLogger(journal).log_metrics({"loss": 1.0}, 1)
        JournalLogger(None).log_metrics({"loss": 1.0}, 1)
        journal.end("FINISHED")
        assert metric_values(tmp_path, "loss") == []


def test_training_imports_neither_mlflow_nor_matplotlib_nor_torch() -> None:
    code = "import sys, losskit_cli.tracking; print([m for m in ('mlflow', 'matplotlib', 'torch', 'sqlalchemy', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
