"""What differs between two runs."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

from losskit_cli.diff import diff_runs, run_diff, to_text
from losskit_cli.tracking import RunInfo, Store
from tests.tracking.memory import MemoryStore

PATCH = "--- a/train.py\n+++ b/train.py\n-x = 1\n+x = {}\n"


def environment(**packages: str) -> bytes:
    return json.dumps({"python": "3.11.7", "platform": "Linux", "packages": packages}).encode()


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    for name, loss, gamma, torch, value in (("one", "focal", "2.0", "2.12", 2), ("two", "cross_entropy", None, "2.13", 3)):
        store.add(
            name,
            {"val/loss": 0.5 if name == "one" else 0.25, "epoch": 3.0, "test/acc": 0.5} | ({"only/one": math.nan} if name == "one" else {}),
            params={"seed": "0", "name": name, "tracking.uri": name} | ({"loss.gamma": gamma} if gamma else {}),
            options={"loss": loss},
            tags={"mlflow.source.git.commit": "c" * 40 if name == "one" else "d" * 40, "losskit.data_fingerprint": "same"},
            artifacts={"code/diff.patch": PATCH.format(value).encode(), "environment/environment.json": environment(torch=torch, numpy="2.0")},
        )
    return store


@pytest.fixture
def pair(store: MemoryStore) -> tuple[RunInfo, RunInfo]:
    return store.find("one"), store.find("two")


def test_what_differs_is_found(pair: Any) -> None:
    found = diff_runs(*pair)
    assert found["config"] == {"loss.gamma": ["2.0", None], "loss": ["focal", "cross_entropy"]}
    assert found["packages"] == {"torch": ["2.12", "2.13"]} and found["environment"] == {} and found["data"] == {}
    assert found["code"]["commit"] == ["c" * 40, "d" * 40] and not found["code"]["same"]
    assert "-+x = 2" in found["code"]["patch"] and "++x = 3" in found["code"]["patch"]
    assert found["metrics"]["val/loss"] == {"first": 0.5, "second": 0.25, "difference": -0.25, "better": "second"}
    assert found["metrics"]["test/acc"]["better"] is None
    assert found["metrics"]["epoch"]["better"] is None and found["metrics"]["only/one"]["second"] is None


def test_as_text(pair: Any) -> None:
    text = to_text(diff_runs(*pair))
    assert "  loss.gamma  2.0 → (none)" in text and "  loss        focal → cross_entropy" in text
    assert "commit  cccccccccccc → dddddddddddd" in text and "differ in 2 lines" in text
    assert "torch  2.12 → 2.13" in text
    assert re.search(r"val/loss +0.5 +0.25 +-0.25 +b is better", text)
    assert text.rstrip().endswith("the same: data, environment")


def test_a_run_and_itself(pair: Any) -> None:
    found = diff_runs(pair[0], pair[0])
    assert not found["config"] and not found["packages"] and found["code"]["same"] and found["metrics"]["val/loss"]["difference"] == 0
    assert "the same: config, data, environment, packages, code" in to_text(found)


def test_data_and_runs_without_an_environment(store: MemoryStore) -> None:
    bare = store.add("bare", tags={"losskit.data_fingerprint": "other"})
    found = diff_runs(store.find("one"), bare)
    assert found["data"] == {"data_fingerprint": ["same", "other"]}
    assert found["packages"] == {"torch": ["2.12", None], "numpy": ["2.0", None]}


def test_the_command(store: MemoryStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Store, "open", staticmethod(lambda uri, cwd: store))
    run_diff("one", "two", json=True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and json.loads(out)["metrics"]["only/one"]["first"] is None
    run_diff("one", "two")
    assert capsys.readouterr().out.startswith("a: one")
