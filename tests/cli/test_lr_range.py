"""``losskit lr-range``: the range is read from a real short training; nothing else is left behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from losskit_cli.lr_range import RangeTest, centred, examine, ramp_callback, suggest
from tests.conftest import Result

Losskit = Callable[..., Result]
IRIS = ["data=iris", "model=linear", "trainer.accelerator=cpu", "data.batch_size=16"]
PNG = b"\x89PNG\r\n\x1a\n"


def curve(rates: list[float], least: float = 0.5) -> list[float]:
    """Falls from 2 with rates around 1e-3 to 0.2, is least at ``least``, rises steeply from there."""
    return [0.2 + 1.8 / (1 + (rate / 1e-3)) + max(rate / least - 1, 0) ** 2 for rate in rates]


RATES = [1e-7 * (1e8) ** (i / 199) for i in range(200)]


class TestSuggestion:
    def test_of_a_known_curve(self) -> None:
        found = suggest(RATES, curve(RATES))
        assert found is not None
        # a tenth of the fall is passed where rate / 1e-3 = 1/9; in the logarithm 1 / (1 + x) is steepest at x = 1
        assert found.low == pytest.approx(1.1e-4, rel=0.15)
        assert found.steepest == pytest.approx(1e-3, rel=0.15)
        assert 0.4 < found.least_at < 0.8 and found.high == pytest.approx(found.least_at / 3)
        assert found.use == pytest.approx(math.sqrt(found.steepest * found.high))
        assert found.low < found.steepest < found.high < found.least_at

    def test_none_where_it_never_falls(self) -> None:
        assert suggest(RATES, [1.0] * 200) is None
        assert suggest(RATES, [1 + i / 200 for i in range(200)]) is None
        test = RangeTest(RATES, [1.0 + rate for rate in RATES])
        examine(test)
        assert test.override is None and "the loss never fell" in test.notes[0]

    def test_still_falling_at_the_end_is_said(self) -> None:
        rates = RATES[:120]
        test = RangeTest(rates, curve(rates))
        examine(test)
        assert test.suggestion is not None and "was still falling" in test.notes[0]

    def test_smoothing_has_no_lag_and_keeps_a_line(self) -> None:
        assert centred([float(i) for i in range(100)])[5:-5] == pytest.approx([float(i) for i in range(5, 95)])
        peak = centred([float(i == 50) for i in range(101)])
        assert peak.index(max(peak)) == 50 and sum(peak) == pytest.approx(1)

    def test_what_is_not_finite_at_the_end_is_left_out(self) -> None:
        test = RangeTest(RATES[:100], [*curve(RATES[:99]), math.nan], diverged=RATES[99])
        examine(test)
        assert len(test.rates) == len(test.losses) == len(test.smoothed) == 99


class TestCommand:
    def test_json_picture_and_nothing_else(self, losskit: Losskit, workdir: Path) -> None:
        result = losskit("lr-range", *IRIS, "--steps", "120", "--max", "100", "--json")
        assert result.code == 0, result.err
        shown = result.json()
        rates = shown["rates"]
        assert rates[0] == pytest.approx(1e-7) and len(rates) == len(shown["losses"]) == len(shown["smoothed"])
        assert [b / a for a, b in pairwise(rates)] == pytest.approx([(1e9) ** (1 / 119)] * (len(rates) - 1))
        found = shown["suggestion"]
        assert 1e-5 < found["low"] < found["steepest"] <= found["high"] < found["least_at"] < 100
        assert shown["override"] == f"optimizer.lr={found['use']:.2g}"
        assert (workdir / shown["file"]).read_bytes().startswith(PNG)
        assert [path.name for path in workdir.iterdir()] == ["lr-range.png"]  # no outputs, no store

    def test_suggested_rate_trains(self, losskit: Losskit) -> None:
        override = losskit("lr-range", *IRIS, "--json").json()["override"]
        run = losskit("train", *IRIS, override, "tracking=none", "--json")
        assert run.code == 0 and run.json()["metrics"]["val/acc"] > 0.8

    def test_same_twice(self, losskit: Losskit) -> None:
        first, second = (losskit("lr-range", *IRIS, "--steps", "30", "--json").json() for _ in range(2))
        assert first == second

    def test_terminal(self, losskit: Losskit, workdir: Path) -> None:
        result = losskit("lr-range", *IRIS, "--steps", "60", "--output", "pictures/range.png")
        assert result.code == 0, result.err
        for text in ("log10 of the", "lowest useful rate", "steepest descent", "highest to use", "begin with", "optimizer.lr=", "pictures/range.png"):
            assert text in result.out
        assert any(0x2800 < ord(c) < 0x2900 for c in result.out)
        quiet = losskit("lr-range", *IRIS, "--steps", "60", "-q")
        assert (quiet.code, quiet.out, quiet.err) == (0, "", "")

    def test_stops_at_divergence(self, losskit: Losskit) -> None:
        shown = losskit("lr-range", "data=diabetes", "model=mlp", "optimizer=sgd", "--max", "1e4", "--json").json()
        assert shown["diverged"] is not None and shown["diverged"] == pytest.approx(shown["rates"][-1], rel=0.5) and shown["rates"][-1] < 1e4

    def test_the_experiments_own_settings_count(self, losskit: Losskit) -> None:
        plain = losskit("lr-range", *IRIS, "--steps", "30", "--json").json()["losses"]
        assert losskit("lr-range", *IRIS, "schedule=wsd", "trainer.max_epochs=1", "--steps", "30", "--json").json()["losses"] == plain
        assert losskit("lr-range", *IRIS, "regularizer=[l2]", "regularizer.l2.weight=1", "--steps", "30", "--json").json()["losses"] != plain

    def test_gathered_batches_are_one_step(self, losskit: Losskit) -> None:
        shown = losskit("lr-range", *IRIS, "trainer.accumulate_grad_batches=2", "--steps", "30", "--json").json()
        assert len(shown["rates"]) == 30 and shown["losses"][0] == pytest.approx(math.log(3), rel=0.8)

    def test_from_weights(self, losskit: Losskit) -> None:
        run = losskit("train", *IRIS, "tracking=none", "optimizer.lr=0.1", "--json").json()
        shown = losskit("lr-range", *IRIS, f"ckpt_path={run['best_checkpoint']}", "--steps", "30", "--json").json()
        assert shown["losses"][0] < 0.4

    def test_a_parameter_groups_rate_keeps_its_proportion(self) -> None:
        class Trainer:
            def __init__(self) -> None:
                self.global_step = 30
                weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
                self.optimizers = [torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.02}], lr=0.1)]

        trainer: Any = Trainer()
        ramp_callback(31, 1e-6, 1.0, Console(quiet=True)).on_train_batch_start(trainer, None, None, 0)
        assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([1.0, 0.2])

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--min", "1", "--max", "0.1"], "--min must be below --max, but got --min 1 --max 0.1"),
            (["--min", "1", "--max", "1"], "--min must be below --max"),
            (["--min", "0"], "--min must be a finite number > 0, but got 0"),
            (["--max", "-3"], "--max must be a finite number > 0, but got -3"),
            (["--max", "inf"], "--max must be a finite number > 0"),
            (["--steps", "5"], "--steps must be at least 20"),
            (["los=focal"], "there is no 'los'"),
            (["optimizer.momentum=2"], "momentum"),
            (["--output", "x.nothing"], "cannot write x.nothing"),
        ],
    )
    def test_refused(self, losskit: Losskit, words: list[str], says: str) -> None:
        steps = [] if "--steps" in words else ["--steps", "20"]
        result = losskit("lr-range", *IRIS, *steps, *words)
        assert (result.code, result.out) == (2, "") and says in result.err, result.err

    def test_not_finite_from_the_start(self, losskit: Losskit) -> None:
        result = losskit("lr-range", *IRIS, "regularizer=[l2]", "regularizer.l2.weight=inf")
        assert result.code == 1 and result.err == "Error: the loss is not finite from the start: the first batch gives inf, before any step\n"

    def test_diverges_at_once(self, losskit: Losskit) -> None:
        result = losskit("lr-range", "data=diabetes", "model=mlp", "optimizer=sgd", "--min", "1e20", "--max", "1e30")
        assert result.code == 1 and "the loss is not finite" in result.err and "Lower --min" in result.err
