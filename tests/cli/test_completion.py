"""Completion: the words that it offers, the shells' dialects, a real bash, and how long a TAB takes."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from losskit_cli.catalogue import Catalogue
from losskit_cli.completion import COMMANDS, COMMON_FLAGS, SHELLS, SUBCOMMANDS, complete, main, split_line
from losskit_cli.errors import UsageError

WORDBREAKS = " \t\n\"'@><=;|&(:"


def offered(line: str) -> list[str]:
    return [c.value for c in complete(line.split(" "))]


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A user's own config directory."""
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    text = "# Striped (me)\n_target_: torch.nn.MSELoss\nstripes: 3\nnested: {deep: 1, deeper: 2}\n"
    (tmp_path / "conf" / "loss" / "zebra.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "conf"


@pytest.fixture
def store(workdir: Path) -> Path:
    """An embedded store with three runs, one of them deleted."""
    path = workdir / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE runs (run_uuid TEXT, name TEXT, status TEXT, start_time INTEGER, lifecycle_stage TEXT);"
            "CREATE TABLE latest_metrics (key TEXT, run_uuid TEXT);"
            "INSERT INTO runs VALUES ('abc123', 'focal-digits-s0', 'FINISHED', 1, 'active'), ('def456', 'kd-digits-s1', 'RUNNING', 2, 'active'),"
            " ('fff', 'gone', 'FAILED', 3, 'deleted');"
            "INSERT INTO latest_metrics VALUES ('val/loss', 'abc123'), ('val/loss', 'def456'), ('test/acc', 'abc123');"
        )
    connection.close()
    return path


class TestCommands:
    def test_commands_and_flags(self) -> None:
        assert offered("tr") == ["train"]
        assert {"train", "list", "show", "doctor", "completion"} <= set(offered(""))
        assert "fit" not in offered("")
        assert offered("train --dry") == ["--dry-run"]
        assert "--json" in offered("fit --")
        assert offered("no_such_command x") == []

    def test_a_flag_given_is_not_offered_again_but_config_dirs_are(self) -> None:
        assert "--quiet" not in offered("train --quiet --")
        assert "--config-dir" in offered("train --config-dir x --")

    def test_values_of_flags(self) -> None:
        assert "classification" in offered("list --task ")
        assert offered("list loss --task=classif") == ["--task=classification"]
        assert offered("train --cfg j") == ["job"]
        assert offered("train --config-name tr") == ["train"]
        assert "loss,schedule" in offered("compare --group-by loss,sch")

    def test_arguments(self) -> None:
        assert "loss" in offered("list ")
        assert offered("show loss=linear_c") == ["loss=linear_cross_entropy"]
        assert offered("show loss linear_c") == ["linear_cross_entropy"]
        assert offered("completion z") == ["zsh"]
        assert offered("storage ") == ["serve"]
        assert offered("storage serve --p") == ["--port"]

    def test_the_table_agrees_with_the_app(self) -> None:
        """What completion knows of the commands is what the app has; it cannot ask the app, which takes too long to import."""
        import typer

        from losskit_cli.app import app

        click = typer.main.get_command(app)
        assert set(COMMANDS) == set(click.commands)  # type: ignore[attr-defined]
        known = dict(COMMANDS)
        groups = {name: command for name, command in click.commands.items() if hasattr(command, "commands")}  # type: ignore[attr-defined]
        assert set(SUBCOMMANDS) == set(groups)
        below: dict[str, Any] = {}
        for name, group in groups.items():
            assert set(SUBCOMMANDS[name]) == set(group.commands)
            known |= {f"{name} {sub}": command for sub, command in SUBCOMMANDS[name].items()}
            below |= {f"{name} {sub}": command for sub, command in group.commands.items()}
        for name, command in {**click.commands, **below}.items():  # type: ignore[attr-defined]
            options = [p for p in command.params if p.param_type_name == "option" and not getattr(p, "hidden", False)]
            flags = {o: p for p in options for o in p.opts} | dict.fromkeys(("--help", "-h"))
            assert set(known[name].flags) == set(flags) - set(COMMON_FLAGS), name
            for flag, parameter in flags.items():
                if parameter is not None:
                    assert bool(known[name].flags[flag]) != parameter.is_flag, f"{name} {flag}"
            arguments = [p for p in command.params if p.param_type_name == "argument"]
            assert len(known[name].words) == len(arguments), name
            assert [w.endswith("...") for w in known[name].words] == [p.nargs == -1 for p in arguments], name


class TestOverrides:
    def test_groups_and_options(self) -> None:
        assert offered("train lo") == ["loss="]
        assert offered("train loss=linear_c") == ["loss=linear_cross_entropy"]
        assert offered("train loss=focal sched") == ["schedule="]
        assert {c.help for c in complete(["train", "loss=linear_c"])} == {Catalogue.default().option("loss", "linear_cross_entropy").description}

    def test_every_option_of_every_group(self) -> None:
        catalogue = Catalogue.default()
        for group in catalogue.groups():
            if group not in ("regularizer", "transform", "callbacks"):
                assert offered(f"train {group}=") == [f"{group}={name}" for name in catalogue.option_names(group)]

    def test_a_whole_group_name_offers_its_keys_too(self) -> None:
        assert offered("train loss") == ["loss=", "loss."]

    def test_lists(self) -> None:
        assert offered("train regularizer=[l") == ["regularizer=[l1", "regularizer=[l2"]
        assert "regularizer=[l1" in offered("train regularizer=")
        assert offered("train regularizer=[l1,l") == ["regularizer=[l1,l2"]
        assert offered("train regularizer=[l1") == ["regularizer=[l1]", "regularizer=[l1,"]
        assert offered("train -m loss=focal,next") == ["loss=focal,next_token"]

    def test_keys_of_the_chosen_option(self) -> None:
        assert offered("train loss=focal loss.ga") == ["loss.gamma="]
        assert offered("train loss=poly1 loss.ep") == ["loss.epsilon="]
        assert offered("train loss=poly1 loss.ga") == []
        assert offered("train trainer.max_e") == ["trainer.max_epochs="]

    def test_what_a_data_option_chooses_counts_but_the_user_wins(self, conf: Path) -> None:
        (conf / "data").mkdir()
        (conf / "data" / "farm.yaml").write_text("# Farm (me)\ndefaults:\n  - override /loss@_global_.loss: zebra\n_target_: a.B\n", encoding="utf-8")
        assert offered(f"train -cd {conf} data=farm loss.str") == ["loss.stripes="]
        assert offered(f"train -cd {conf} data=farm loss=poly1 loss.str") == []

    def test_top_level_keys(self) -> None:
        assert offered("train see") == ["seed="]
        assert offered("train ++see") == ["++seed="]

    def test_values(self) -> None:
        assert offered("train train=") == ["train=true", "train=false"]
        assert offered("train loss.reduction=") == ["loss.reduction=mean", "loss.reduction=sum", "loss.reduction=none"]
        assert offered("train loss=focal loss.gamma=") == ["loss.gamma=2.0"]

    def test_prefixes(self) -> None:
        assert offered("train +loss=linear_c") == ["+loss=linear_cross_entropy"]
        assert offered("train ~reg") == ["~regularizer"]
        assert offered("train loss=focal ~loss.ga") == ["~loss.gamma"]
        assert offered("train ++loss=focal ++loss.ga") == ["++loss.gamma="]

    def test_added_loss(self) -> None:
        assert offered("train +loss@aux") == ["+loss@auxiliary."]
        assert "+loss@auxiliary.kd=" in offered("train +loss@auxiliary.")
        assert offered("train +loss@auxiliary.kd=")[0] == "+loss@auxiliary.kd=kd"
        assert offered("train +loss@auxiliary.x=kd auxiliary.") == ["auxiliary.x."]
        assert {"auxiliary.x.weight=", "auxiliary.x.temperature="} <= set(offered("train +loss@auxiliary.x=kd auxiliary.x."))

    def test_chosen_regularizers(self) -> None:
        assert offered("train regularizer=[l1,jacobian] regularizer.") == ["regularizer.l1.", "regularizer.jacobian."]
        assert "regularizer.jacobian.projections=" in offered("train regularizer=[l1,jacobian] regularizer.jacobian.")

    def test_users_own_tree(self, conf: Path) -> None:
        assert offered(f"train --config-dir {conf} loss=ze") == ["loss=zebra"]
        assert offered(f"train --config-dir={conf} loss=zebra loss.st") == ["loss.stripes="]
        assert offered(f"train -cd {conf} loss=zebra loss.nested.") == ["loss.nested.deep=", "loss.nested.deeper="]
        assert offered("train loss=ze") == []

    def test_parameters_that_the_file_does_not_list(self, conf: Path) -> None:
        assert offered(f"train -cd {conf} loss=zebra loss.reduct") == ["loss.reduction="]
        assert "+loss.reduction=" in offered(f"train -cd {conf} loss=zebra +loss.")
        assert "+loss.stripes=" not in offered(f"train -cd {conf} loss=zebra +loss.")

    @pytest.mark.parametrize("word", ["=", "==", "@", "+@=", "loss@=x", "[", "a.b.c.", "loss..", "loss=focal=", "{", "regularizer=[]"])
    def test_nonsense_offers_nothing(self, word: str) -> None:
        assert [w for w in offered(f"train {word}") if w != "regularizer=[]"] == []


class TestRunsAndFiles:
    def test_runs_where_a_schedule_is_taken_from_one(self, store: Path) -> None:
        (name, *_) = offered("rerun ")
        assert f"schedule={name}" in offered("plot schedule=") and "schedule=wsd" in offered("plot schedule=")
        assert offered(f"train schedule=replay schedule.run={name[:3]}")[0].startswith("schedule.run=")
        both = offered("predict-loss ")
        assert name in both and "schedule=" in both
        assert offered("predict-loss --law ann") == ["annealing"]

    def test_runs_latest_first(self, store: Path) -> None:
        assert offered("resume ") == ["kd-digits-s1", "focal-digits-s0"]
        assert offered("rerun abc") == ["abc123"]
        assert offered("diff kd-digits-s1 foc") == ["focal-digits-s0"]
        assert offered("rerun abc123 loss=linear_c") == ["loss=linear_cross_entropy"]
        assert offered("compare --metric val") == ["val/loss"]

    def test_store_named_by_the_environment(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        other = store.parent / "other place" / "runs.db"
        other.parent.mkdir()
        store.rename(other)
        assert offered("resume ") == []
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
        assert offered("resume ") == ["kd-digits-s1", "focal-digits-s0"]

    def test_no_store_or_a_broken_one(self, workdir: Path) -> None:
        assert offered("resume ") == []
        assert not (workdir / "mlflow.db").exists()
        (workdir / "mlflow.db").write_bytes(b"no database" * 100)
        assert offered("resume ") == []

    def test_files(self, workdir: Path) -> None:
        (workdir / "data").mkdir()
        (workdir / "data" / "churn.csv").touch()
        (workdir / "data" / ".hidden").touch()
        assert offered("train --config-dir d") == ["data/"]
        assert offered("predict x --input data/") == ["data/churn.csv"]
        assert offered("train data=csv data.path=da") == ["data.path=data/"]
        assert offered("train data=csv data.path=data/ch") == ["data.path=data/churn.csv"]


class TestShells:
    @pytest.mark.parametrize(
        ("line", "words", "kept"),
        [
            ("losskit train loss=fo", ["train", "loss=fo"], 5),
            ("losskit  train ", ["train", ""], 0),
            ("losskit train +loss@auxiliary.k", ["train", "+loss@auxiliary.k"], 5),
            ("losskit train 'loss=fo", ["train", "loss=fo"], 0),
            ('losskit train "a b" x', ["train", "a b", "x"], 0),
            (r"losskit train a\ b=c", ["train", "a b=c"], 4),
            ("losskit tr", ["tr"], 0),
        ],
    )
    def test_split_line(self, line: str, words: list[str], kept: int) -> None:
        assert split_line(str(len(line)), line, WORDBREAKS) == (words, kept, "'" in line)

    def test_words_right_of_the_cursor_do_not_count(self) -> None:
        assert split_line("10", "losskit tr loss=focal", WORDBREAKS) == (["tr"], 0, False)

    def test_bash_gets_what_follows_the_last_wordbreak(self, capsys: pytest.CaptureFixture[str]) -> None:
        line = "losskit train loss=linear_c"
        main(["bash", str(len(line)), line, WORDBREAKS])
        assert capsys.readouterr().out == "linear_cross_entropy \n"
        line = "losskit train lo"
        main(["bash", str(len(line)), line, WORDBREAKS])
        assert capsys.readouterr().out == "loss=\n"

    def test_zsh_and_fish_get_words_and_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        description = Catalogue.default().option("loss", "linear_cross_entropy").description
        main(["zsh", "train", "loss=linear_c"])
        assert capsys.readouterr().out == f"loss=linear_cross_entropy \t{description}\n"
        main(["fish", "train", "loss=linear_c"])
        assert capsys.readouterr().out == f"loss=linear_cross_entropy\t{description}\n"
        main(["zsh", "train", "lo"])
        assert capsys.readouterr().out == "loss=\t\n"
        main(["fish", "train", "'loss=linear_c"])
        assert capsys.readouterr().out.startswith("loss=linear_cross_entropy\t")
        main(["fish", "train", "regularizer=[l1,jac"])
        assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["regularizer=[l1,jacobian]", "regularizer=[l1,jacobian,"]

    def test_it_never_fails(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "loss").mkdir()
        (tmp_path / "loss" / "bad.yaml").write_text("# Bad (me)\nx: [1, 2\n", encoding="utf-8")
        for arguments in ([], ["bash"], ["bash", "x", "y", "z"], ["zsh"], ["tcsh", "tr"], ["zsh", "train", "-cd", str(tmp_path), "loss=bad", "loss."]):
            main(arguments)
        assert "Traceback" not in capsys.readouterr().err

    @pytest.mark.parametrize("shell", SHELLS)
    def test_script(self, shell: str) -> None:
        done = run("completion", shell)
        assert done.returncode == 0
        assert f"__complete {shell}" in done.stdout

    def test_unknown_shell(self) -> None:
        from losskit_cli.completion import run_completion

        with pytest.raises(UsageError, match="bash, zsh, fish, but got 'tcsh'"):
            run_completion("tcsh")


class TestSpeed:
    def test_answers_without_anything_heavy(self) -> None:
        code = (
            "import sys; sys.argv = ['losskit', '__complete', 'zsh', 'train', 'loss=focal', 'loss.ga']\n"
            "from losskit_cli.__main__ import main; main(); print(*sorted({m.split('.')[0] for m in sys.modules}))"
        )
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
        assert out[0].startswith("loss.gamma=")
        heavy = {"torch", "lightning", "mlflow", "optuna", "hydra", "omegaconf", "typer", "rich", "pydantic", "dataclasses", "importlib.metadata"}
        assert set(out[-1].split()).isdisjoint(heavy)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "losskit_cli", *arguments], capture_output=True, text=True, check=False)


class Bash:
    """A real, interactive bash on a terminal of its own, with losskit's completion switched on."""

    def __init__(self, directory: Path) -> None:
        program = directory / "bin" / "losskit"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m losskit_cli "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        settings = directory / "rc"
        lines = ["PS1='ready> '", "bind 'set enable-bracketed-paste off'", "bind 'set bell-style none'", 'eval "$(losskit completion bash)"']
        settings.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self.terminal, child = pty.openpty()
        environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "TERM": "dumb", "INPUTRC": os.devnull, "HISTFILE": os.devnull}
        command = [str(shutil.which("bash")), "--noprofile", "--rcfile", str(settings), "-i"]
        self.process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, cwd=directory, env=environment, start_new_session=True)
        os.close(child)
        self.read_until("ready> ")

    def read_until(self, text: str, seconds: float = 30) -> str:
        seen, end = "", time.monotonic() + seconds
        while text not in seen:
            ready, _, _ = select.select([self.terminal], [], [], max(end - time.monotonic(), 0))
            assert ready, f"no {text!r} in {seen!r}"
            seen += os.read(self.terminal, 65536).decode(errors="replace")
        return seen

    def words_after_tab(self, line: str, then: str = "") -> list[str]:
        """Type ``line``, TAB and ``then``; the words that bash makes of what stands there."""
        os.write(self.terminal, f"{line}\t{then}\x01printf '<%s>' END \x05 END; echo\r".encode())
        seen = self.read_until("<END>\r\n")
        self.read_until("ready> ") if not seen.endswith("ready> ") else None
        return re.findall(r"<([^>]*)>", seen[seen.rindex("<END><") + 5 :])[:-1]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Bash]:
    shell = Bash(tmp_path)
    yield shell
    shell.close()


class TestRealBash:
    def test_words(self, bash: Bash) -> None:
        assert bash.words_after_tab("losskit tra", "x") == ["losskit", "train", "x"]
        assert bash.words_after_tab("losskit train los", "x") == ["losskit", "train", "loss=x"]
        assert bash.words_after_tab("losskit train loss=linear_c", "x") == ["losskit", "train", "loss=linear_cross_entropy", "x"]
        assert bash.words_after_tab("losskit train loss=focal loss.gam", "3") == ["losskit", "train", "loss=focal", "loss.gamma=3"]
        assert bash.words_after_tab("losskit train regularizer=[l1,jac", "]") == ["losskit", "train", "regularizer=[l1,jacobian]"]
        assert bash.words_after_tab("losskit train +loss@aux", "kd=kd") == ["losskit", "train", "+loss@auxiliary.kd=kd"]
        assert bash.words_after_tab("losskit train +loss@auxiliary.nex", "kd") == ["losskit", "train", "+loss@auxiliary.next_token=kd"]
        assert bash.words_after_tab("losskit train ++trainer.max_ep", "2") == ["losskit", "train", "++trainer.max_epochs=2"]
        assert bash.words_after_tab("losskit train ~regul", "x") == ["losskit", "train", "~regularizer", "x"]
        assert bash.words_after_tab("losskit train 'loss=linear_c") == ["losskit", "train", "loss=linear_cross_entropy"]
        assert bash.words_after_tab("losskit train 'regularizer=[l1,jac") == ["losskit", "train", "regularizer=[l1,jacobian"]
        assert bash.words_after_tab("losskit train --dry", "x") == ["losskit", "train", "--dry-run", "x"]
        assert bash.words_after_tab("A=1 losskit train loss=next", "x")[-2:] == ["loss=next_token", "x"]

    def test_second_command_of_a_line(self, bash: Bash) -> None:
        os.write(bash.terminal, b"true; losskit train loss=next\tx")
        assert "loss=next_token x" in bash.read_until("n x")
