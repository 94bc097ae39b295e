"""``losskit plot``: the points are the component's own, beside what is usual; a PNG and a small picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from losskit_cli.catalogue import Catalogue
from losskit_cli.errors import UsageError
from losskit_cli.plot import Panel, blocks, loss_picture, run_plot, schedule_picture

OF_RUNS = ("replay", "autolrs")  # they have no course before a run has had one: test_found_schedule
PNG = b"\x89PNG\r\n\x1a\n"


class TestSchedule:
    def test_points_are_the_schedules(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run_plot(["schedule=wsd", "schedule.decay=0.3"], steps=200, json=True)
        shown = json.loads(capsys.readouterr().out)
        from components.schedules import WSD

        schedule = WSD(decay=0.3, shape="1-sqrt", warmup=0.05, total_steps=200)
        (panel,) = shown["panels"]
        assert panel["curves"]["wsd"] == pytest.approx([schedule(int(step)) for step in shown["x"]])
        assert panel["curves"]["cosine"] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 200)) for step in shown["x"]])
        assert (shown["x"][0], shown["x"][-1]) == (0, 200)

    def test_file_and_picture(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run_plot(["schedule=wsd"])
        assert (workdir / "schedule-wsd.png").read_bytes().startswith(PNG)
        out = capsys.readouterr().out
        assert "schedule-wsd.png" in out
        assert any(0x2800 < ord(c) < 0x2900 for c in out)

    def test_output(self, workdir: Path) -> None:
        run_plot(["schedule=cosine"], output=workdir / "new" / "x.png", json=True)
        assert (workdir / "new" / "x.png").read_bytes().startswith(PNG)
        with pytest.raises(UsageError, match=r"cannot write .*x\.nothing"):
            run_plot(["schedule=cosine"], output=workdir / "x.nothing")

    def test_every_shipped_schedule(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in Catalogue.default().option_names("schedule"):
            if name in OF_RUNS:
                continue
            run_plot([f"schedule={name}"], steps=50, json=True)
            (panel,) = json.loads(capsys.readouterr().out)["panels"]
            assert all(math.isfinite(v) for v in panel["curves"][name]), name

    def test_few_steps(self) -> None:
        picture = schedule_picture(lambda step: step / 3, "line", 3)
        assert picture.x == [0, 1, 2, 3]
        with pytest.raises(UsageError, match="--steps must be at least 2"):
            run_plot(["schedule=wsd"], steps=1)


class TestLoss:
    def test_focal_against_the_margin(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run_plot(["loss=focal", "loss.gamma=3"], json=True)
        shown = json.loads(capsys.readouterr().out)
        value, gradient = shown["panels"]
        for margin, focal, usual in zip(shown["x"], value["curves"]["focal"], value["curves"]["cross-entropy"], strict=True):
            p = 1 / (1 + math.exp(-margin))
            assert usual == pytest.approx(-math.log(p), rel=1e-5)
            assert focal == pytest.approx(-((1 - p) ** 3) * math.log(p), rel=1e-3, abs=1e-6)
        slope = [(b - a) / (shown["x"][1] - shown["x"][0]) for a, b in zip(value["curves"]["focal"][:-2], value["curves"]["focal"][1:-1], strict=True)]
        assert gradient["curves"]["focal"][:-2] == pytest.approx(slope, abs=0.05)
        assert (workdir / "loss-focal.png").read_bytes().startswith(PNG)

    @pytest.mark.parametrize("name", ["cross_entropy", "next_token"])
    def test_cross_entropy_is_itself(self, name: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run_plot([f"loss={name}"], json=True)
        for panel in json.loads(capsys.readouterr().out)["panels"]:
            assert panel["curves"][name] == pytest.approx(panel["curves"]["cross-entropy"], abs=1e-5)

    def test_sigmoid_loss_is_cross_entropy_of_one_label(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run_plot(["loss=bce"], json=True)
        value, _ = json.loads(capsys.readouterr().out)["panels"]
        assert value["curves"]["bce"] == pytest.approx(value["curves"]["cross-entropy"], abs=1e-5)

    def test_regression_against_the_error(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run_plot(["loss=l1"], json=True)
        shown = json.loads(capsys.readouterr().out)
        assert shown["panels"][0]["curves"]["l1"] == pytest.approx([abs(x) for x in shown["x"]], abs=1e-5)
        assert shown["panels"][0]["curves"]["squared error"] == pytest.approx([x * x for x in shown["x"]], abs=1e-4)

    def test_every_shipped_loss_is_drawn_or_refused_in_words(
        self, workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At a few points each, and without the file."""
        monkeypatch.setattr("losskit_cli.plot.POINTS", 17)
        monkeypatch.setattr("losskit_cli.plot.save", lambda picture, file: None)
        drawn, refused = set(), set()
        for name in Catalogue.default().option_names("loss"):
            try:
                run_plot([f"loss={name}"], json=True)
            except UsageError as error:
                assert f"loss={name} needs" in str(error) or f"loss={name} cannot be drawn against one number: " in str(error), error
                refused.add(name)
            else:
                drawn.add(name)
                value, gradient = json.loads(capsys.readouterr().out)["panels"]
                first = next(iter(value["curves"]))
                assert any(gradient["curves"][first]), name
                assert all(map(math.isfinite, value["curves"][first])), name
        assert {"focal", "dice", "gaussian_nll", "quantile", "poly1", "huber", "bpr", "triplet", "arcface"} <= drawn
        assert {"box_giou", "info_nce", "tal", "nce", "pinn", "spherical_softmax", "profit_regret"} <= drawn
        assert {"kd", "trades"} <= refused and len(drawn) > 5 * len(refused)

    def test_ranking_is_drawn_against_the_lead(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run_plot(["loss=bpr"], json=True)
        shown = json.loads(capsys.readouterr().out)
        value, gradient = (panel["curves"] for panel in shown["panels"])
        assert value["bpr"] == pytest.approx(value["logistic (BPR)"], abs=1e-5)
        assert gradient["bpr"] == pytest.approx(gradient["logistic (BPR)"], abs=1e-5)

    def test_embeddings_are_drawn_against_the_cosine(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The triplet loss on unit vectors, margin 0.2: a pair at cosine c of its anchor, the negatives at cosine 0."""
        run_plot(["loss=triplet"], json=True)
        shown = json.loads(capsys.readouterr().out)
        slopes = {name: shown["panels"][1]["curves"][name] for name in ("of the same class", "of the other class")}
        assert min(slopes["of the other class"]) >= -1e-6 < max(slopes["of the other class"]), "nearer to the other class is worse"
        assert max(slopes["of the same class"]) <= 1e-6, "nearer to its own class is better"

    def test_pairs_are_drawn_against_the_cosine(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """InfoNCE of two orthogonal pairs, each at one place: every sample's own partner at cosine 1, the other pair's two at c."""
        run_plot(["loss=info_nce", "loss.temperature=0.5"], json=True)
        shown = json.loads(capsys.readouterr().out)
        other = shown["panels"][0]["curves"]["of the other pair"]
        assert other == pytest.approx([math.log1p(2 * math.exp((c - 1) / 0.5)) for c in shown["x"]], abs=1e-5)

    def test_boxes_are_drawn_against_the_shift(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run_plot(["loss=box_iou"], json=True)
        shown = json.loads(capsys.readouterr().out)
        overlap = [max(1 - abs(shift), 0.0) for shift in shown["x"]]
        assert shown["panels"][0]["curves"]["box_iou"] == pytest.approx([1 - o / (2 - o) for o in overlap], abs=1e-5)

    def test_densities_are_drawn_against_the_lead(self, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Noise contrastive estimation with one sample of each and even odds is the logistic loss of both halves of the lead."""
        run_plot(["loss=nce"], json=True)
        shown = json.loads(capsys.readouterr().out)
        assert shown["panels"][0]["curves"]["nce"] == pytest.approx([2 * math.log1p(math.exp(-x / 2)) for x in shown["x"]], abs=1e-5)

    def test_third_partys_names(self) -> None:
        picture = loss_picture(torch.nn.MSELoss(), "theirs", {"input": "prediction"})
        assert picture.panels[0].curves["theirs"] == pytest.approx(picture.panels[0].curves["squared error"], abs=1e-5)

    def test_a_loss_that_cannot_take_one_sample_is_refused(self) -> None:
        class Pairs(torch.nn.Module):
            def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
                if len(prediction) < 2:
                    raise ValueError("prediction must hold two samples")
                return prediction.diff(dim=0).mean()

        with pytest.raises(UsageError, match="loss=pairs cannot be drawn against one number: prediction must hold two samples"):
            loss_picture(Pairs(), "pairs")


class TestErrors:
    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            ([], "say what to draw"),
            (["seed=3"], "say what to draw"),
            (["loss=focall"], "did you mean 'focal'"),
            (["loss=focal", "loss.gamma=-1"], "loss=focal: gamma must be >= 0"),
            (["loss=focal", "loss.gama=1"], "did you mean 'gamma'"),
            (["schedule=wsd", "schedule._target_=os.system"], "refused"),
        ],
    )
    def test_message_and_no_file(self, overrides: list[str], message: str, workdir: Path) -> None:
        with pytest.raises(UsageError, match=message):
            run_plot(overrides)
        assert list(workdir.iterdir()) == []


class TestBlocks:
    def test_a_rising_line(self) -> None:
        picture = blocks([0, 10], Panel("y", {"line": [0.0, 1.0]}), "x", width=40, height=5).splitlines()
        rows = [line.split("┤")[1] for line in picture if "┤" in line]
        assert len(rows) == 5
        first = [min(i for i, c in enumerate(row) if c != "\u2800") for row in rows]
        assert first == sorted(first, reverse=True)  # further up is further right
        assert picture[1].strip().startswith("1 ┤")
        assert max(map(len, picture)) <= 40

    def test_a_flat_line_and_two_curves(self) -> None:
        picture = blocks([0, 1], Panel("y", {"one": [2.0, 2.0], "two": [2.0, 2.0]}), "x", width=30, height=3)
        assert "one" in picture
        assert "two" in picture
