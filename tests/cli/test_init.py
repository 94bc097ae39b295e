"""``losskit init``: the project that it makes is found by every command, passes its own tests, and nothing is overwritten."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from losskit_cli.catalogue import Catalogue
from losskit_cli.errors import UsageError
from losskit_cli.init_project import check_name, project_files, run_init
from losskit_cli.signatures import signature_of


@pytest.fixture
def project(workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = run_init("my_project")
    monkeypatch.syspath_prepend(str(root))
    yield root
    for name in [m for m in sys.modules if m.partition(".")[0] == "my_project"]:
        del sys.modules[name]


def run(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *command], cwd=project, env=environment, capture_output=True, text=True, check=False)


class TestProject:
    def test_files(self, project: Path) -> None:
        files = {p.relative_to(project).as_posix() for p in project.rglob("*") if p.is_file()}
        assert files == {
            "README.md", "pyproject.toml", ".gitignore", "my_project/__init__.py", "my_project/losses.py", "my_project/conf/loss/my_loss.yaml",
            "my_project/conf/experiment/my_experiment.yaml", "my_project/conf/local/default.yaml", "tests/test_losses.py",
        }  # fmt: skip
        for path in files:
            assert "PROJECT" not in (project / path).read_text(encoding="utf-8")

    def test_says_what_to_do_next(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run_init("my_project")
        assert "losskit train loss=my_loss" in capsys.readouterr().out

    def test_its_option_is_found_and_its_class_read(self, project: Path) -> None:
        catalogue = Catalogue.default([project / "my_project" / "conf"])
        option = catalogue.option("loss", "my_loss")
        assert option.description
        assert option.needs() == ["logits", "target"]
        assert "classification" in catalogue.tasks_for(option)
        info = signature_of(str(option.target))
        assert info is not None
        assert {"strength", "weight", "ignore_index", "reduction"} == set(info.parameter_names)

    def test_its_tests_pass(self, project: Path) -> None:
        done = run(project, "pytest", "-q", "-p", "no:cacheprovider")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "passed" in done.stdout

    def test_it_composes_and_the_package_is_allowed(self, project: Path) -> None:
        from losskit_cli.check import Targets
        from losskit_cli.compose import Composer

        for override in ("loss=my_loss", "experiment=my_experiment"):
            composed = Composer([project / "my_project" / "conf"]).compose([override])
            config = composed.resolved()
            assert config["loss"]["_target_"] == "my_project.losses.MyLoss"
            assert callable(Targets(config["allow_targets"]).resolve(config["loss"]["_target_"], "loss"))
            assert config["tags"] == (["my_project"] if override.startswith("experiment") else [])

    def test_dry_run(self, project: Path) -> None:
        done = run(project, "losskit_cli", "train", "--dry-run", "--config-dir", "my_project/conf", "loss=my_loss", "loss.strength=0.5")
        assert done.returncode == 0, done.stderr

    def test_installed_it_is_a_plugin(self, project: Path) -> None:
        """With the metadata that installing its pyproject.toml gives, every command knows it."""
        import tomllib

        declared = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["losskit.config"]
        info = project / "my_project-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_project\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text("[losskit.config]\n" + "".join(f"{k} = {v}\n" for k, v in declared.items()))
        done = run(project, "losskit_cli", "list", "loss", "--search", "my_loss")
        assert done.stdout.startswith("my_loss"), done.stderr
        done = run(project, "losskit_cli", "config", "loss=my_loss")
        assert "my_project.losses.MyLoss" in done.stdout, done.stderr


class TestRefusals:
    def test_never_overwrites(self, workdir: Path) -> None:
        (workdir / "mine").mkdir()
        (workdir / "mine" / "README.md").write_text("precious")
        with pytest.raises(UsageError, match="is there already and is not empty; nothing was changed"):
            run_init("mine")
        assert [p.name for p in (workdir / "mine").iterdir()] == ["README.md"]
        assert (workdir / "mine" / "README.md").read_text() == "precious"
        (workdir / "file").write_text("x")
        with pytest.raises(UsageError, match="is there already"):
            run_init("file")

    def test_an_empty_folder_and_a_path_are_fine(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (workdir / "empty_one").mkdir()
        assert (run_init("empty_one") / "pyproject.toml").is_file()
        assert (run_init("deeper/below") / "below" / "losses.py").is_file()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("my-project", "'my_project' is one"),
            ("2nd try", "'my_2nd_try' is one"),
            ("class", "'my_class' is one"),
            ("Größe", "'gr_e' is one"),
            ("", "is one"),
            ("components", "my_components is free"),
            ("json", "my_json is free"),
            ("torch", "already an installed package 'torch'"),
        ],
    )
    def test_names(self, name: str, message: str, workdir: Path) -> None:
        with pytest.raises(UsageError, match=message):
            check_name(name)
        assert list(workdir.iterdir()) == []

    def test_a_place_that_cannot_be_written(self, workdir: Path) -> None:
        (workdir / "blocked").write_text("a file where a directory is wanted")
        with pytest.raises(UsageError, match="cannot make"):
            run_init("blocked/my_project")


def test_the_examples_of_the_documentation_work(workdir: Path) -> None:
    """The loss, its option file and the adapted module of docs/extending.md, as they stand there."""
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    for block in re.findall(r"```(?:python|yaml)\n(.*?)```", text, re.DOTALL):
        first, _, rest = block.partition("\n")
        if re.fullmatch(r"# (mine|conf)/[\w/]+\.(py|yaml)", first):
            file = workdir / first.removeprefix("# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(rest, encoding="utf-8")
    assert {p.name for p in workdir.rglob("*.*")} == {"losses.py", "tempered.yaml", "smooth_l1.yaml"}
    done = run(workdir, "losskit_cli", "train", "--dry-run", "--config-dir", "conf", "loss=tempered", "loss.tau=0.5", "allow_targets=[mine]")
    assert done.returncode == 0, done.stderr
    done = run(workdir, "losskit_cli", "train", "--dry-run", "--config-dir", "conf", "data=diabetes", "loss=smooth_l1")
    assert done.returncode == 0, done.stderr


def test_templates_are_all_there() -> None:
    assert len(list(project_files("x"))) == 9
