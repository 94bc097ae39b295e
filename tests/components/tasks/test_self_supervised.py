import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from tiny_tasks import Recorder, TinyData, build, trainer
from torch import nn

from components.tasks.self_supervised import knn_accuracy, linear_probe_accuracy


@pytest.fixture
def features() -> tuple[torch.Tensor, ...]:
    """Overlapping classes: (training features, labels, held-out features, labels)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (300,), generator=generator)
    x = 1.2 * nn.functional.one_hot(labels, 6).float() + 0.6 * torch.randn(300, 6, generator=generator)
    return x[:200], labels[:200], x[200:], labels[200:]


class TestProbes:
    def test_the_linear_probe_is_scikit_learns(self, features: tuple[torch.Tensor, ...]):
        x, y, held_out, expected = (part.numpy() for part in features)
        mean, std = x.mean(0), x.std(0)
        reference = LogisticRegression(C=1 / (1e-3 * len(x)), max_iter=1000, tol=1e-8).fit((x - mean) / std, y)
        accuracy = float(np.mean(reference.predict((held_out - mean) / std) == expected))
        assert 0.7 < accuracy < 1
        assert linear_probe_accuracy(*features) == pytest.approx(accuracy, abs=0.011)  # one sample of a hundred on the boundary

    def test_neighbours_are_scikit_learns(self, features: tuple[torch.Tensor, ...]):
        x, y, held_out, expected = (part.numpy() for part in features)
        vote = KNeighborsClassifier(10, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / 0.07)).fit(x, y)
        assert knn_accuracy(*features, k=10) == pytest.approx(float(np.mean(vote.predict(held_out) == expected)), abs=1e-9)

    def test_separable_features_are_told_apart(self):
        labels = torch.arange(60) % 3
        x = nn.functional.one_hot(labels).float() * 5
        assert linear_probe_accuracy(x, labels, x, labels) == knn_accuracy(x, labels, x, labels, k=5) == 1.0

    def test_works_in_inference_mode_and_twice_the_same(self, features: tuple[torch.Tensor, ...]):
        with torch.inference_mode():
            inside = [tensor.clone() for tensor in features]
            assert linear_probe_accuracy(*inside) == linear_probe_accuracy(*features)

    def test_constant_features_and_unknown_classes_do_no_harm(self):
        x, y = torch.ones(10, 3), torch.arange(10) % 2
        assert linear_probe_accuracy(x, y, x, torch.full((10,), 7)) == 0.0
        assert knn_accuracy(x, y, x, torch.full((10,), 7), k=50) == 0.0


class TestTask:
    def test_logs_the_probes_at_each_validation_and_test(self):
        task, data = build("self_supervised")
        recorder = Recorder()
        fit = trainer(recorder, max_epochs=2)
        fit.fit(task, datamodule=data)
        fit.test(task, datamodule=data, verbose=False)
        for stage, times in (("val", 2), ("test", 1)):
            values = [row for _, row in recorder.rows if f"{stage}/linear_probe_acc" in row]
            assert len(values) == times and all(0 <= row[f"{stage}/{name}"] <= 1 for row in values for name in ("linear_probe_acc", "knn_acc"))
            assert all(f"{stage}/loss" in row for row in values)

    def test_probes_judge_the_plain_inputs(self):
        task, data = build("self_supervised", optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-9))
        recorder = Recorder()
        trainer(recorder).fit(task, datamodule=data)
        task.eval()
        with torch.no_grad():
            known, held_out = (task.features_of(data.splits[name]["inputs"]) for name in ("train", "val"))
        expected = knn_accuracy(known, data.splits["train"]["target"], held_out, data.splits["val"]["target"], k=3)
        assert next(row["val/knn_acc"] for _, row in recorder.rows if "val/knn_acc" in row) == pytest.approx(expected)

    def test_validation_leaves_the_random_state_alone_and_repeats_itself(self):
        task, data = build("self_supervised")
        before = torch.get_rng_state()
        losses = [trainer().validate(task, datamodule=data, verbose=False)[0] for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before) and losses[0] == losses[1]

    def test_the_two_views_differ(self):
        task, data = build("self_supervised")
        quantities = task.quantities(next(iter(data.train_dataloader())))
        assert not torch.equal(quantities["features_1"], quantities["features_2"])
        assert not torch.equal(quantities["features_1"], quantities["features"])

    def test_the_models_own_output_layer_is_left_out(self):
        task, _ = build("self_supervised")
        assert not any(p.requires_grad for p in task.model.head.parameters())  # type: ignore[union-attr]
        assert all(p.requires_grad for p in task.projection.parameters())

    def test_at_most_probe_samples_are_used(self):
        task, data = build("self_supervised", probe_samples=5)
        fit = trainer(limit_train_batches=1)
        fit.fit(task, datamodule=data)
        features, labels = task.training_features(data)
        assert features.shape == (5, 8) and labels.tolist() == [data.splits["train"]["target"][i].item() for i in (0, 5, 10, 14, 19)]

    def test_without_labels_only_the_loss_is_logged(self):
        data = TinyData("self_supervised")
        task, _ = build("self_supervised", data=data)
        for split in data.splits.values():
            split["target"] = split["target"].float().unsqueeze(1)
        recorder = Recorder()
        trainer(recorder).fit(task, datamodule=data)
        assert {key for _, row in recorder.rows for key in row} == {"train/loss", "val/loss", "lr-SGD", "epoch"}

    def test_errors(self):
        task, data = build("self_supervised")
        task.model = nn.Flatten()
        with pytest.raises(ValueError, match="needs a model that reports features; Flatten gives only an output"):
            task.quantities(next(iter(data.train_dataloader())))
        with pytest.raises(ValueError, match="neighbours must be >= 1"):
            build("self_supervised", options={"neighbours": 0})
        with pytest.raises(ValueError, match="probe_samples must be >= 1"):
            build("self_supervised", options={"probe_samples": 0})
