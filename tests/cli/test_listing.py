"""``losskit list`` and ``losskit show``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from losskit_cli.catalogue import Catalogue
from losskit_cli.errors import UsageError
from losskit_cli.listing import GROUPS, describe, group_rows, option_rows, run_list, run_show
from losskit_cli.mathtext import formulas_of, plain, prose, readable


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue.default()


class TestList:
    def test_groups(self, capsys: pytest.CaptureFixture[str]) -> None:
        run_list()
        lines = capsys.readouterr().out.splitlines()
        assert any(line.split()[:2] == ["loss", str(len(Catalogue.default().options("loss")))] for line in lines)

    def test_every_shipped_group_is_described(self, catalogue: Catalogue) -> None:
        assert set(catalogue.groups()) <= set(GROUPS)

    def test_group_without_a_cut_line_in_a_pipe(self, capsys: pytest.CaptureFixture[str], catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "30")
        run_list("loss")
        out = capsys.readouterr().out
        assert "\x1b" not in out
        for option in catalogue.options("loss"):
            line = next(line for line in out.splitlines() if line.split()[0] == option.name)
            assert option.description in line
            assert option.source in line

    def test_search_takes_every_word_and_all_groups(self, catalogue: Catalogue) -> None:
        assert [r["name"] for r in option_rows(catalogue, "loss", search="cross-entropy fades")] == ["focal"]
        assert option_rows(catalogue, "loss", search="FOCAL")[0]["name"] == "focal"
        of_margin = [r["name"] for r in option_rows(catalogue, "loss", task="embedding", search="margin")]
        assert "triplet" in of_margin and "supervised_contrastive" not in of_margin, "a parameter's name"
        assert {"loss", "schedule"} <= {r["group"] for r in option_rows(catalogue, None, search="e")}

    def test_nothing_found_is_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        run_list("loss", search="no such thing at all")
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "no loss fits --search no such thing at all" in captured.err

    def test_task_keeps_what_it_can_feed(self, catalogue: Catalogue) -> None:
        names = {r["name"] for r in option_rows(catalogue, "loss", task="classification")}
        assert {"focal", "cross_entropy", "bce"} <= names
        assert names.isdisjoint({"mse", "kd", "info_nce", "gaussian_nll"})
        assert {"diabetes"} <= {r["name"] for r in option_rows(catalogue, "data", task="regression")}
        assert "digits" not in {r["name"] for r in option_rows(catalogue, "data", task="regression")}

    def test_unknown_names(self, catalogue: Catalogue) -> None:
        with pytest.raises(UsageError, match="no group 'losss'; did you mean 'loss'") as error:
            option_rows(catalogue, "losss")
        assert error.value.exit_code == 2
        with pytest.raises(UsageError, match="no task=classificatoin; did you mean 'classification'"):
            option_rows(catalogue, "loss", task="classificatoin")

    def test_json(self, capsys: pytest.CaptureFixture[str], catalogue: Catalogue) -> None:
        run_list("schedule", json=True)
        rows = json.loads(capsys.readouterr().out)
        assert [r["name"] for r in rows] == catalogue.option_names("schedule")
        assert set(rows[0]) == {"group", "name", "description", "source"}
        run_list(json=True)
        assert json.loads(capsys.readouterr().out) == group_rows(catalogue)

    def test_users_options_join(self, tmp_path: Path) -> None:
        (tmp_path / "loss").mkdir()
        (tmp_path / "loss" / "zebra.yaml").write_text("# Striped (me, 2026)\n_target_: torch.nn.MSELoss\n", encoding="utf-8")
        rows = option_rows(Catalogue.default([tmp_path]), "loss", search="striped")
        assert rows == [{"group": "loss", "name": "zebra", "description": "Striped", "source": "me, 2026"}]

    def test_in_a_terminal_lines_fit(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "losskit_cli", "list", "loss"]
        code = (
            "import os, pty, sys\nos.environ.update(COLUMNS='60', TERM='xterm')\n"
            f"sys.exit(os.waitstatus_to_exitcode(pty.spawn({command!r})))"
        )
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in out.splitlines()]
        assert any(line.lstrip().startswith("focal") for line in lines)
        assert max(map(len, lines)) <= 60


class TestShow:
    @pytest.mark.parametrize("words", [["loss=focal"], ["loss/focal"], ["loss", "focal"], ["focal"]])
    def test_ways_to_name_it(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        run_show(words)
        assert capsys.readouterr().out.startswith("loss=focal  ")

    def test_text_has_all_parts(self, capsys: pytest.CaptureFixture[str]) -> None:
        run_show(["loss=focal"])
        out = capsys.readouterr().out
        for part in ("gamma=2.0", "Needs", "logits", "Tasks that offer it", "classification", "Source", "arXiv:1708.02002"):
            assert part in out, part
        assert "losskit train loss=focal loss.gamma=2.0" in out
        assert "log p" in out  # the formula
        assert "\\" not in out
        assert ":math:" not in out

    @pytest.mark.parametrize("width", [40, 80, 200])
    def test_text_keeps_to_the_width(self, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", str(width))
        run_show(["loss=huber"])
        lines = capsys.readouterr().out.splitlines()
        long = [line for line in lines[1:-2] if len(line) > width and " " in line.strip() and not line.startswith("    ") and "losskit train" not in line]
        assert long == []

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        run_show(["loss=focal"], json=True)
        shown = json.loads(capsys.readouterr().out)
        parameters = {p["name"]: p for p in shown["parameters"]}
        assert parameters["gamma"] | {"description": ""} == {
            "name": "gamma", "default": "2.0", "required": False, "type": "float", "choices": [], "description": "", "in_option_file": True,
        }  # fmt: skip
        assert parameters["reduction"]["choices"] == ["mean", "sum", "none"]
        assert shown["needs"].keys() == {"logits", "target"}
        assert "classification" in shown["tasks"]
        assert shown["formula"]
        assert shown["target"] == "components.losses.FocalLoss"

    def test_every_shipped_option_can_be_shown(self, catalogue: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
        for group in catalogue.groups():
            for option in catalogue.options(group):
                run_show([f"{group}={option.name}"])
                out = capsys.readouterr().out
                assert option.description in out
                assert "\\frac" not in out

    def test_every_example_names_the_option_and_only_keys_that_are_there(self, catalogue: Catalogue) -> None:
        for group in catalogue.groups():
            for option in catalogue.options(group):
                words = describe(catalogue, option)["example"].split()
                if group == "experiment" and "claim" in option.values:
                    assert words == ["losskit", "reproduce", option.name]
                    continue
                assert words[:2] == ["losskit", "sweep" if group.startswith("sweep") else "train"]
                assert f"{group}={option.name}" in words or f"{group}=[{option.name}]" in words

    def test_an_example_brings_data_that_suit(self, catalogue: Catalogue) -> None:
        words = describe(catalogue, catalogue.option("loss", "huber"))["example"].split()
        data = next(w.removeprefix("data=") for w in words if w.startswith("data="))
        assert catalogue.suits_task(catalogue.option("data", data), "regression") or catalogue.suits_task(catalogue.option("data", data), "forecasting")

    def test_facts_are_not_the_users_to_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = "class L:\n    def __init__(self, num_classes, tau=1.0): ...\n    def forward(self, logits, target): ...\n"
        (tmp_path / "pkg_facts.py").write_text(source, encoding="utf-8")
        (tmp_path / "conf" / "loss").mkdir(parents=True)
        (tmp_path / "conf" / "loss" / "l.yaml").write_text("# L (me)\n_target_: pkg_facts.L\n", encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        catalogue = Catalogue.default([tmp_path / "conf"])
        shown = describe(catalogue, catalogue.option("loss", "l"))
        assert [p["name"] for p in shown["parameters"]] == ["tau"]
        assert shown["filled_in"] == {"num_classes": "number of classes"}

    def test_errors(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(UsageError, match="no loss=focall; did you mean 'focal'"):
            run_show(["loss=focall"])
        with pytest.raises(UsageError, match="which one"):
            run_show(["loss"])
        with pytest.raises(UsageError, match="did you mean 'focal'"):
            run_show(["focl"])
        with pytest.raises(UsageError, match=r"regularizer=l1|loss=l1"):
            run_show(["l1"])
        assert capsys.readouterr().out == ""


class TestMath:
    @pytest.mark.parametrize(
        ("latex", "text"),
        [
            (r"\ell = -\log p_t + \epsilon\,(1 - p_t)", "ℓ = -log pₜ + ε (1 - pₜ)"),
            (r"\frac{1}{2} x^2", "½ x²"),
            (r"\frac{a + b}{\sqrt{n}}", "(a + b) / √(n)"),
            (r"\sum_{i=1}^{N} w_i", "Σᵢ₌₁^N wᵢ"),
            (r"\mathbb{E}_{x \sim P}\left[f(x)\right]", "𝔼_{x ~ P}[f(x)]"),
            (r"\begin{cases} a & x \le 1 \\ b & \text{otherwise} \end{cases}", "a, x ≤ 1\nb, otherwise"),
            (r"\lVert w \rVert_2^2", "‖ w ‖₂²"),
            (r"\hat{y} \in \{0, 1\}", "ŷ ∈ {0, 1}"),
            (r"\operatorname{softmax}(z)_y", "softmax(z)_y"),
            ("unclosed { group", "unclosed group"),
        ],
    )
    def test_readable(self, latex: str, text: str) -> None:
        assert readable(latex) == text

    def test_formulas_of(self) -> None:
        doc = "One.\n\n.. math:: a = b\n          + c,\n\nText.\n\n.. math::\n\n    d\n\nArgs:\n    x: y\n"
        assert formulas_of(doc) == ["a = b\n+ c,", "d"]

    def test_plain(self) -> None:
        assert plain(r"with :math:`\alpha_t` see :func:`~torch.relu` and ``x``, *really*") == "with αₜ see torch.relu and x, really"

    def test_prose(self) -> None:
        text = prose("First line\ngoes on.\n\n.. math:: x^2\n\n- one\n- two\n", 80)
        assert text == "First line goes on.\n\n    x²\n- one\n- two"
