"""What a run is described by."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from losskit_cli.tracking import capture_environment, config_hash, describe_run, flatten
from losskit_cli.tracking.environment import DIFF_LIMIT, packages_text

CONFIG: dict[str, Any] = {
    "seed": 3,
    "loss": {"_target_": "components.losses.FocalLoss", "gamma": 2.0, "weight": None},
    "regularizer": {},
    "model": {"widths": [64, 32], "norm": True},
    "layers": [{"kind": "conv"}, {"kind": "pool"}],
    "optimized_metric": "val/loss",
    "tags": ["paper"],
}


class TestDescription:
    def test_flat_parameters(self) -> None:
        assert flatten(CONFIG) == {
            "seed": "3",
            "loss._target_": "components.losses.FocalLoss",
            "loss.gamma": "2.0",
            "loss.weight": "null",
            "regularizer": "{}",
            "model.widths": "[64, 32]",
            "model.norm": "true",
            "layers.0.kind": "conv",
            "layers.1.kind": "pool",
            "optimized_metric": "val/loss",
            "tags": '["paper"]',
        }

    def test_the_hash_is_shared_by_runs_that_differ_in_seed_and_place_only(self) -> None:
        same = {**CONFIG, "seed": 4, "name": "other", "output_dir": "elsewhere", "tracking": {"uri": "x"}}
        assert config_hash(CONFIG) == config_hash(same) == config_hash(dict(reversed(CONFIG.items())))
        assert config_hash(CONFIG) != config_hash({**CONFIG, "loss": {"gamma": 2.5}})

    def test_a_run(self) -> None:
        choices = {"loss": "focal", "regularizer": ["l1", "l2"], "transform": [], "experiment": None, "loss@auxiliary.kd": "kd"}
        run = describe_run(CONFIG, name="n", choices=choices, overrides=["loss=focal", "seed=3"], config_yaml="a: 1\n", data_fingerprint="f00", tags={"x": 1})
        assert run["name"] == "n" and run["params"]["loss.gamma"] == "2.0"
        assert run["texts"] == {"overrides.txt": "loss=focal\nseed=3\n", "config.yaml": "a: 1\n"}
        tags = run["tags"]
        assert tags["losskit.loss"] == "focal" and tags["losskit.regularizer"] == "l1,l2" and tags["losskit.loss.auxiliary.kd"] == "kd"
        assert tags["losskit.seed"] == 3 and tags["losskit.data_fingerprint"] == "f00" and tags["losskit.optimized_metric"] == "val/loss"
        assert tags["losskit.label.paper"] == "true" and tags["x"] == 1
        assert not {"losskit.transform", "losskit.experiment", "losskit.task_name"} & tags.keys()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "train.py").write_text("x = 1\n")
    (tmp_path / "data.csv").write_text("a\n")
    git(tmp_path, "add", "train.py")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    git(tmp_path, "remote", "add", "origin", "https://me:secret@host/repo.git")
    return tmp_path


def git(cwd: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


class TestEnvironment:
    def test_packages_and_python(self, tmp_path: Path) -> None:
        environment = capture_environment(tmp_path)
        assert environment["python"].startswith("3.") and environment["packages"]["torch"].startswith("2.")
        assert f"torch=={environment['packages']['torch']}\n" in packages_text(environment)
        assert environment["git"] is None

    def test_a_clean_repository(self, repository: Path) -> None:
        found = capture_environment(repository)["git"]
        assert found["commit"] == git(repository, "rev-parse", "HEAD") and found["branch"] == "trunk"
        assert found["remote"] == "https://host/repo.git"
        assert (found["dirty"], found["diff"]) == (False, "")  # data.csv is data, not code

    def test_changes_and_new_files_can_be_applied_again(self, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        (repository / "train.py").write_text("x = 2\n")
        (repository / "my_loss.py").write_text("class Mine:\n    pass")
        (repository / "conf").mkdir()
        (repository / "conf" / "mine.yaml").write_text("a: ü\n")
        found = capture_environment(repository / "conf")["git"]  # from below the top as well
        assert found["dirty"] and "data.csv" not in found["diff"]
        other = tmp_path_factory.mktemp("clone") / "repo"
        git(repository, "clone", "-q", str(repository), str(other))
        (other / "p.patch").write_text(found["diff"])
        git(other, "apply", "p.patch")
        for name in ("train.py", "my_loss.py", "conf/mine.yaml"):
            assert (other / name).read_bytes() == (repository / name).read_bytes()

    def test_the_diff_is_capped(self, repository: Path) -> None:
        (repository / "train.py").write_text("".join(f"x = {i}\n" for i in range(200_000)))
        found = capture_environment(repository)["git"]
        assert len(found["diff"]) == DIFF_LIMIT and found["diff_cut"]

    def test_a_repository_without_a_commit(self, tmp_path: Path) -> None:
        git(tmp_path, "init", "-q")
        (tmp_path / "a.py").write_text("a = 1\n")
        found = capture_environment(tmp_path)["git"]
        assert found["commit"] is None and "+a = 1" in found["diff"]

    def test_no_git_on_this_machine(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        assert capture_environment(repository)["git"] is None
