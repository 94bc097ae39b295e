"""``losskit reproduce`` on a claim of one's own, one YAML file: that a usable learning rate beats none at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from losskit_cli.claims import TUNING_SEED, claims_of
from sweeps.storage import open_storage
from sweeps.study import Sweep, runs_of
from tests.conftest import Result, command

Losskit = Callable[..., Result]
EXPERIMENT = """\
# @package _global_
# A learning rate beats none, on three kinds of iris (me, 2026)
defaults: [{override /data: iris}, {override /model: linear}, {override /tracking: none}]
trainer: {max_epochs: 2, accelerator: cpu}
claim:
  paper: 'Me, "A learning rate beats none", 2026'
  says: training helps
  shown_by: three kinds of iris
  baseline: [optimizer.lr=1e-9]
  method: [optimizer.lr=0.1]
  metric: test/loss
  better: lower
  notes: It would be strange otherwise.
"""
TUNED = EXPERIMENT.replace("baseline: [optimizer.lr=1e-9]", "baseline: [loss=cross_entropy]").replace("method: [optimizer.lr=0.1]", "method: [loss=focal]") + (
    '  tune: ["optimizer.lr=1e-9,0.1"]\n'
)


@pytest.fixture
def mine(workdir: Path) -> Path:
    directory = workdir / "mine" / "experiment"
    directory.mkdir(parents=True)
    (directory / "rate.yaml").write_text(EXPERIMENT)
    (directory / "tuned.yaml").write_text(TUNED)
    (directory / "broken.yaml").write_text(EXPERIMENT.replace("method: [optimizer.lr=0.1]", "method: [optimizer.lr=0.1, optimizer.momentum=2]"))
    return directory.parent


def test_one_claim_from_its_file_to_its_verdict(losskit: Losskit, mine: Path) -> None:
    result = losskit("reproduce", "rate", "-cd", str(mine))
    assert result.code == 0, result.err
    assert "claim: training helps" in result.out and "It would be strange otherwise." in result.out
    assert "reproduced: method − baseline = -" in result.out and "(5 pairs of runs)" in result.out

    found = losskit("reproduce", "rate", "-cd", str(mine), "--json").json()  # nothing is run again
    assert found["verdict"] == "reproduced" and found["high"] < 0 and found["pairs"] == 5
    assert [*found["arms"]] == ["method", "baseline"] and found["arms"]["method"]["overrides"] == ["optimizer.lr=0.1"]
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    sweep = Sweep.open(found["sweep"], open_storage())
    assert len(sweep.trials()) == 10
    by_hand = losskit("train", "--json", "-cd", str(mine), "experiment=rate", "arm=baseline", "seed=3").json()
    assert by_hand["metrics"]["test/loss"] == found["arms"]["baseline"]["values"]["3"]

    again = losskit("reproduce", "rate", "-cd", str(mine), "--again", "--json").json()
    assert again["sweep"] == f"{found['sweep']}-2" and again["arms"] == found["arms"]
    other = losskit("reproduce", "rate", "-cd", str(mine), "trainer.max_epochs=1", "--seeds", "3", "--json").json()
    assert other["sweep"] not in (found["sweep"], again["sweep"]) and other["pairs"] == 3


def test_arms_are_tuned_by_validation_with_other_seeds(losskit: Losskit, mine: Path) -> None:
    found = losskit("reproduce", "tuned", "-cd", str(mine), "--json").json()
    assert {arm: told["overrides"][-1] for arm, told in found["arms"].items()} == {"method": "optimizer.lr=0.1", "baseline": "optimizer.lr=0.1"}
    names = [study.study_name for study in open_storage().get_all_studies()]
    tuning = Sweep.open(next(name for name in names if name.startswith("claim-tuned-tuning-")), open_storage())
    assert tuning.plan.objectives == ["val/loss"] and len(tuning.trials()) == 4
    for trial in tuning.trials():
        for run in runs_of(trial).values():
            assert not any(name.startswith("test/") for name in run["metrics"])
            assert f"seed: {TUNING_SEED}" in (Path(run["run_dir"]) / "config.yaml").read_text()
    fixed = losskit("reproduce", "tuned", "-cd", str(mine), "optimizer.lr=0.05", "--json").json()  # what is given is not tuned
    assert fixed["arms"]["method"]["overrides"] == ["loss=focal"]


def test_all_of_them_as_a_page(losskit: Losskit, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped claims would take an hour: here all of them are this one."""
    monkeypatch.setattr("losskit_cli.reproduce.claims_of", lambda catalogue: [c for c in claims_of(catalogue) if c.name == "rate"])
    result = losskit("reproduce", "--all", "-cd", str(mine), "--output", "docs/claims.md", "-q")
    assert result.code == 0, result.err
    page = Path("docs/claims.md").read_text()
    assert "1 claims: 1 reproduced." in page
    assert "| `losskit reproduce rate` | test/loss ↓ |" in page and "| **reproduced** |" in page
    assert "- `rate`: training helps" in page


class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["rat"], "there is no claim 'rat'; did you mean 'rate'?"),
            (["byte_lm"], "experiment=byte_lm claims nothing"),
            ([], "say which claim"),
            (["rate", "--all"], "say which claim"),
            (["rate", "--output", "x.md"], "--output is where --all writes"),
            (["rate", "seed=1"], "seed=… is the claim's own matter"),
            (["rate", "arm=method"], "arm=… is the claim's own matter"),
            (["rate", "--seeds", "1"], "--seeds must be 2 or more"),
            (["rate", "optimizer.lrr=1"], "there is no 'optimizer.lrr'; did you mean 'lr'?"),
            (["rate", "sweep.workers=0"], "sweep.workers=0"),
        ],
    )
    def test_wrong_usage(self, losskit: Losskit, mine: Path, words: list[str], said: str) -> None:
        result = losskit("reproduce", "-cd", str(mine), *words)
        assert result.code == 2 and said in result.err
        assert not (mine.parent / "sweeps.db").exists(), "nothing is begun"

    def test_a_run_that_fails(self, losskit: Losskit, mine: Path) -> None:
        result = losskit("reproduce", "broken", "-cd", str(mine), "sweep.max_failures_in_a_row=0")
        assert result.code in (1, 2) and "momentum" in result.err

    def test_a_metric_that_is_not_logged(self, losskit: Losskit, mine: Path) -> None:
        file = mine / "experiment" / "rate.yaml"
        file.write_text(EXPERIMENT.replace("test/loss", "test/lss"))
        result = losskit("reproduce", "rate", "-cd", str(mine))
        assert result.code == 2 and "logs no 'test/lss'; did you mean 'test/loss'?" in result.err

    def test_list_and_dry_run_begin_nothing(self, losskit: Losskit, mine: Path) -> None:
        listed: list[dict[str, Any]] = losskit("reproduce", "--list", "-cd", str(mine), "--json").json()
        assert {"rate", "tuned"} <= {claim["name"] for claim in listed}
        told = losskit("reproduce", "tuned", "-cd", str(mine), "--dry-run")
        assert told.code == 0 and "tuned: 4 + 10 runs" in told.out
        assert not (mine.parent / "sweeps.db").exists()


def test_interrupted_it_goes_on(workdir: Path, mine: Path, store_template: Path, losskit: Losskit) -> None:
    """Ctrl-C in the middle, then the same command: no run is made twice, and the outcome is that of an unbroken one."""
    shutil.copy(store_template, workdir / "mlflow.db")
    arguments = ("reproduce", "rate", "-cd", str(mine), "trainer.max_epochs=30", "sweep.workers=1")
    with (workdir / "log").open("w") as log:
        process = subprocess.Popen(command(*arguments), stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 90
        name = ""
        while time.monotonic() < deadline:
            names = [study.study_name for study in open_storage().get_all_studies()] if (workdir / "sweeps.db").exists() else []
            name = next((n for n in names if n.startswith("claim-rate-")), "")
            if name and Sweep.open(name, open_storage()).status().complete >= 2:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, (workdir / "log").read_text()
    assert "Go on with: losskit reproduce rate trainer.max_epochs=30" in (workdir / "log").read_text()
    before = {trial.number: trial.values for trial in Sweep.open(name, open_storage()).trials() if trial.state.is_finished()}
    assert 2 <= len(before) < 10
    found = losskit(*arguments, "--json").json()
    after = Sweep.open(name, open_storage()).trials()
    assert found["sweep"] == name and len(after) == 10
    assert {trial.number: trial.values for trial in after if trial.number in before} == before
    assert found["verdict"] == "reproduced"
