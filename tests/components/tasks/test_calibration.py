import functools

import pytest
import torch
from tiny_tasks import TinyData, build, trainer
from torch import Tensor, nn

from components.data.base import Batch
from components.losses import CorrectnessAwareLoss, CrossEntropyLoss, RejectionLoss
from components.models import MLP
from components.tasks import CalibrationTask, RejectionTask, Task, train_predictor
from components.tasks.calibration import is_held_out


def batch_of(task: Task, data: TinyData) -> Batch:
    batch: Batch = next(iter(data.train_dataloader()))
    return batch


def trained(name: str, **options: object) -> tuple[Task, TinyData]:
    """A stage on a classifier that has learnt a little, after some epochs."""
    data = TinyData(name, samples=200, eval_samples=60, batch_size=40)
    task, _ = build(name, data=data, options={"held_out": 0.5, **options}, optimizer=functools.partial(torch.optim.Adam, lr=0.05), schedule=None)
    train_predictor(task.model.requires_grad_(), data, held_out=0.5, epochs=2, lr=0.01)
    trainer(max_epochs=5).fit(task, datamodule=data)
    return task.eval(), data


class TestHeldOut:
    def test_share_and_what_it_depends_on(self) -> None:
        index = torch.arange(10_000)
        assert is_held_out(index, 0.3).float().mean().item() == pytest.approx(0.3, abs=0.02)
        assert torch.equal(is_held_out(index[5:9], 0.3), is_held_out(index, 0.3)[5:9])
        assert (is_held_out(index, 0.3) <= is_held_out(index, 0.5)).all(), "a larger share holds out the same and more"

    def test_the_classifier_learns_from_the_others_alone(self) -> None:
        """Other targets among the held-out samples change no weight of it."""
        weights = []
        for shift in (0, 1):
            data = TinyData("classification", samples=60)
            data.setup()
            rows = is_held_out(torch.arange(60), 0.4)
            data.splits["train"]["target"] = torch.where(rows, (data.splits["train"]["target"] + shift) % 3, data.splits["train"]["target"])
            data.splits["train"]["inputs"] = torch.where(rows[:, None], data.splits["train"]["inputs"] + shift, data.splits["train"]["inputs"])
            torch.manual_seed(0)
            model = train_predictor(MLP((6,), 3, hidden=(8,), norm="batch"), data, held_out=0.4, epochs=2)
            assert not any(p.requires_grad for p in model.parameters()) and not model.training
            weights.append([*model.state_dict().values()])
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))

    @pytest.mark.parametrize("name", ["calibration", "rejection"])
    def test_the_stage_learns_from_them_alone(self, name: str) -> None:
        task, data = build(name, options={"held_out": 0.4})
        batch = {k: v[:] for k, v in data.splits["train"].items()} | {"index": torch.arange(20)}
        known = is_held_out(batch["index"], 0.4)
        quantities = task.quantities(batch)
        assert torch.equal(~quantities["target_multi_hot"].isnan().any(1), known)
        if name == "calibration":
            assert torch.equal(quantities["target"] >= 0, known)
        task.eval()
        assert not task.quantities(batch)["target_multi_hot"].isnan().any(), "in evaluation every sample counts"

    def test_mixed_samples_are_refused(self) -> None:
        task, data = build("calibration")
        with pytest.raises(ValueError, match="does not mix"):
            task.quantities({**batch_of(task, data), "mix_target": {}, "mix_weight": torch.tensor(0.5)})

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"held_out": 0.0}, "held_out"),
            ({"held_out": 1.0}, "held_out"),
            ({"predictor_epochs": 0}, "predictor_epochs must be >= 1"),
            ({"predictor_lr": 0.0}, "predictor_lr must be > 0"),
            ({"calibrator": "platt"}, "calibrator must be one of adaptive, temperature"),
            ({"top": 0}, "top"),
            ({"min_temperature": 0.0}, "min_temperature"),
            ({"max_temperature": 0.5}, "max_temperature"),
        ],
    )
    def test_wrong_options_are_named(self, wrong: dict[str, object], says: str) -> None:
        with pytest.raises(ValueError, match=says):
            build("calibration", options=wrong)

    def test_wrong_data_and_rejector_are_named(self) -> None:
        with pytest.raises(ValueError, match="target_kind must be 'multiclass', but got 'real'"):
            CalibrationTask.facts({"target_kind": "real"})
        with pytest.raises(ValueError, match="rejector must be one of"):
            build("rejection", options={"rejector": "oracle"})


class TestCalibration:
    @pytest.mark.parametrize("calibrator", ["adaptive", "temperature"])
    def test_answers_stay_and_temperatures_keep_their_bounds(self, calibrator: str) -> None:
        task, data = trained("calibration", calibrator=calibrator)
        inputs = data.splits["test"]["inputs"]
        with torch.no_grad():
            columns, own = task.predict({"inputs": inputs}), task.model(inputs).output
        assert torch.equal(columns["prediction"], own.argmax(1))
        assert ((columns["temperature"] >= 0.1) & (columns["temperature"] <= 10)).all()
        assert (columns["temperature"] - 1).abs().max() > 0.01, "it has learnt something"
        torch.testing.assert_close(columns["probability"], (own / columns["temperature"][:, None]).softmax(1))
        if calibrator == "temperature":
            assert columns["temperature"].unique().numel() == 1

    def test_temperature_scaling_finds_the_best_temperature(self) -> None:
        data = TinyData("calibration", samples=300, batch_size=100)
        task, _ = build(
            "calibration",
            data=data,
            loss=CrossEntropyLoss(),
            options={"held_out": 0.5, "calibrator": "temperature"},
            optimizer=functools.partial(torch.optim.Adam, lr=0.05),
            schedule=None,
        )
        train_predictor(task.model.requires_grad_(), data, held_out=0.5, epochs=6, lr=0.01)
        trainer(max_epochs=40).fit(task, datamodule=data)
        held_out = is_held_out(torch.arange(300), 0.5)
        split = data.splits["train"]
        with torch.no_grad():
            logits = task.model(split["inputs"][held_out]).output
        grid = torch.linspace(0.1, 3, 291)
        best = grid[torch.stack([nn.functional.cross_entropy(logits / t, split["target"][held_out]) for t in grid]).argmin()]
        assert task.calibrator(logits)[0].item() == pytest.approx(float(best), abs=0.1)  # type: ignore[operator]

    def test_all_right_drives_the_temperature_down(self) -> None:
        """With ``balanced=false``: nothing speaks against confidence."""
        calibrator = torch.nn.Parameter(torch.ones(()))
        logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.Adam([calibrator], lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            CorrectnessAwareLoss(balanced=False)(logits / calibrator.clamp(0.1, 10), logits.argmax(1)).backward()
            optimizer.step()
        assert calibrator.clamp(0.1, 10).item() == pytest.approx(0.1)


class TestRejection:
    @pytest.mark.parametrize("rejector", ["features", "confidence"])
    def test_learns_what_is_right(self, rejector: str) -> None:
        task, data = trained("rejection", rejector=rejector)
        test = data.splits["test"]
        with torch.no_grad():
            columns = task.predict({"inputs": test["inputs"]})
        assert columns.keys() == {"prediction", "probability", "score", "accepted"}
        assert torch.equal(columns["accepted"] == 1, columns["score"] > 0)
        if rejector == "confidence":
            by_score, by_confidence = columns["score"].argsort(), columns["probability"].amax(1).argsort()
            assert torch.equal(by_score, by_confidence) or torch.equal(by_score, by_confidence.flip(0))

    def test_label_is_whether_the_classifier_is_right(self) -> None:
        task, data = build("rejection", loss=RejectionLoss(0.2))
        assert isinstance(task, RejectionTask)
        task.eval()
        batch = batch_of(task, data)
        right: Tensor = task.quantities(batch)["target_multi_hot"]
        assert torch.equal(right[:, 0] == 1, task.model(batch["inputs"]).output.argmax(1) == batch["target"])
