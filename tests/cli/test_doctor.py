"""``losskit doctor``: what is wrong is found, named with a way to mend it, and gives exit code 1."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from losskit_cli import doctor
from losskit_cli.doctor import FAIL, OK, WARN, Finding, run_doctor
from losskit_cli.errors import LosskitError


def findings(check: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor._guarded(check)}


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The whole report as JSON, wrong or not."""
    with contextlib.suppress(LosskitError):  # the report is on stdout all the same
        run_doctor(json=True)
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    return shown


class TestReport:
    def test_this_installation_is_well(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run_doctor()
        out = capsys.readouterr().out
        for word in ("python", "torch", "lightning", "mlflow", "optuna", "hydra-core", "cpu", "disk", "store", "components", "sweeps", "config"):
            assert any(line.split()[1:2] == [word] for line in out.splitlines()), word
        assert not any(line.startswith("fail") for line in out.splitlines())
        assert list(workdir.iterdir()) == []

    def test_json(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shown = report(capsys)
        assert shown["ok"] is True
        assert {f["status"] for f in shown["findings"]} <= {OK, WARN, FAIL}
        assert set(shown["findings"][0]) == {"name", "status", "value", "mend"}

    def test_something_wrong_gives_exit_code_1_and_a_way_to_mend_it(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (workdir / "mlflow.db").write_bytes(b"SQLite format 3\x00" + b"rubbish" * 500)
        with pytest.raises(LosskitError, match="something wrong with: store") as error:
            run_doctor()
        assert error.value.exit_code == 1
        lines = capsys.readouterr().out.splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("fail"))
        assert lines[at + 1].strip().startswith("→")

    def test_a_check_that_breaks_is_a_line(self) -> None:
        def check_broken() -> Any:
            yield Finding("first", OK, "fine")
            raise ImportError("libfoo.so.1: cannot open shared object file")

        found = findings(check_broken)
        assert found["first"].status == OK
        assert found["broken"].status == FAIL
        assert "libfoo.so.1" in found["broken"].value


class TestPackages:
    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "IMPORTED", {"no_such_module_here": "no-such-distribution"})
        found = findings(doctor.check_packages)["no-such-distribution"]
        assert (found.status, found.mend) == (FAIL, "pip install no-such-distribution")

    def test_cannot_be_imported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "broken_module_a.py").write_text("raise OSError('libbar.so: version mismatch')\n")
        (tmp_path / "broken_module_b.py").write_text("import missing_dependency_of_b\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(doctor, "IMPORTED", {"broken_module_a": "dist-a", "broken_module_b": "dist-b"})
        found = findings(doctor.check_packages)
        assert "libbar.so: version mismatch" in found["dist-a"].value
        assert found["dist-b"].mend == "pip install missing_dependency_of_b"

    def test_wrong_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from packaging.specifiers import SpecifierSet

        monkeypatch.setattr(doctor, "_requirements", lambda: {"optuna": SpecifierSet(">=99")})
        found = findings(doctor.check_packages)["optuna"]
        assert found.status == FAIL
        assert found.mend == 'pip install "optuna>=99"'


class TestStore:
    def make(self, path: Path, runs: int = 2) -> None:
        with sqlite3.connect(path) as connection:
            connection.executescript(
                "CREATE TABLE alembic_version (version_num TEXT); INSERT INTO alembic_version VALUES ('abc');"
                "CREATE TABLE runs (run_uuid TEXT, lifecycle_stage TEXT);"
            )
            connection.executemany("INSERT INTO runs VALUES (?, 'active')", [(str(i),) for i in range(runs)])
        connection.close()

    def test_none_yet(self, workdir: Path) -> None:
        assert "none yet" in findings(doctor.check_store)["store"].value

    def test_runs_and_schema(self, workdir: Path) -> None:
        self.make(workdir / "mlflow.db")
        found = findings(doctor.check_store)["store"]
        assert found.status == OK
        assert "2 runs, schema abc" in found.value

    def test_another_database(self, workdir: Path) -> None:
        with sqlite3.connect(workdir / "mlflow.db") as connection:
            connection.execute("CREATE TABLE something (x)")
        connection.close()
        found = findings(doctor.check_store)["store"]
        assert found.status == FAIL
        assert "no MLflow store" in found.value

    def test_a_server_that_is_away(self, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://name:secret@127.0.0.1:9")
        found = findings(doctor.check_store)["store"]
        assert found.status == FAIL
        assert "cannot be reached" in found.value
        assert "secret" not in "".join(found) + "".join("".join(f) for f in findings(doctor.check_environment).values())


class TestPlaces:
    def test_disk_nearly_full(self, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "total used free")
        for free, status in ((50 * doctor.MB, FAIL), (1 * doctor.GB, WARN), (50 * doctor.GB, OK)):
            monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, free=free: usage(free, 0, free))
            assert findings(doctor.check_disk)["disk"].status == status

    def test_another_package_of_our_name(self, tmp_path: Path) -> None:
        """Another ``components`` is first on the path: the report still comes, and names it."""
        for name in ("components", "sweeps"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").touch()
        code = "from losskit_cli.doctor import _guarded, check_names\nfor f in _guarded(check_names): print(f.name, f.status, f.value)"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path).stdout
        assert f"components fail Python finds {tmp_path / 'components'} instead of" in out
        assert "sweeps fail" in out

    def test_a_folder_of_our_name_beside_us(self, workdir: Path) -> None:
        (workdir / "sweeps").mkdir()
        (workdir / "sweeps" / "run.py").touch()
        found = list(doctor._guarded(doctor.check_names))
        assert [(f.name, f.status) for f in found] == [("components", OK), ("sweeps", OK), ("sweeps", WARN)]

    def test_plugins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("doctor_plugin", "doctor_gone", "doctor_empty"):
            info = tmp_path / f"{name}-1.dist-info"
            info.mkdir()
            (info / "entry_points.txt").write_text(f"[losskit.config]\n{name} = {name}\n")
        (tmp_path / "doctor_plugin" / "conf" / "loss").mkdir(parents=True)
        (tmp_path / "doctor_plugin" / "__init__.py").touch()
        (tmp_path / "doctor_plugin" / "conf" / "loss" / "focal.yaml").write_text("# Another focal (me)\n")
        (tmp_path / "doctor_plugin" / "conf" / "loss" / "own.yaml").write_text("# Own (me)\n")
        (tmp_path / "doctor_empty").mkdir()
        (tmp_path / "doctor_empty" / "__init__.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
        found = findings(doctor.check_configs)
        assert found["plug-in doctor_plugin"].status == WARN
        assert "2 options in 1 groups; hidden by losskit's own: loss=focal" in found["plug-in doctor_plugin"].value
        assert found["plug-in doctor_gone"].status == FAIL
        assert found["plug-in doctor_empty"].status == WARN
        assert found["config"].status == OK

    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE", "os")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        found = findings(doctor.check_environment)
        assert found["HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE"].status == WARN
        assert found["CUDA_VISIBLE_DEVICES"].status == WARN
        assert found["OMP_NUM_THREADS"] == Finding("OMP_NUM_THREADS", OK, "2")
