"""Every task option goes through the same trials."""

import ast
import inspect
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from tiny_tasks import LOSSES, OTHER_HEADS, Recorder, TinyData, build, trainer
from torch import Tensor

import components.tasks as tasks
from components.quantities import FACTS, QUANTITIES

CONF = Path(__file__).parents[3] / "conf"
OPTIONS = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))
CASES = {name: (name, None) for name in tasks.BY_NAME} | {
    "regression, gaussian": ("regression", "gaussian"),
    "regression, quantile": ("regression", "quantile"),
    "forecasting, gaussian": ("forecasting", "gaussian"),
    "forecasting, quantile": ("forecasting", "quantile"),
    "language_modelling, linear_cross_entropy": ("language_modelling", "linear_cross_entropy"),
}
# sizes of the tiny data: N samples, C classes, D features, T targets, …; a task may use a letter of its own
SHAPES = {
    "classification": {"logits": (4, 3), "target": (4,), "target_multi_hot": (4, 3), "features": (4, 8)},
    "regression": {"prediction": (4, 2), "log_variance": (4, 2), "quantiles": (4, 2, 3), "target": (4, 2), "features": (4, 8)},
    "forecasting": {
        "history": (4, 8, 2),
        "target": (4, 3, 2),
        "prediction": (4, 3, 2),
        "log_variance": (4, 3, 2),
        "quantiles": (4, 3, 2, 3),
        "features": (4, 32),
    },
    "calibration": {"logits": (4, 3), "target": (4,), "target_multi_hot": (4, 3), "features": (4, 8)},
    "rejection": {"logits": (4, 1), "target_multi_hot": (4, 1), "features": (4, 8)},
    "targeting": {"logits": (4, 1), "target_multi_hot": (4, 1), "lifetime_value": (4,), "features": (4, 8)},
    "segmentation": {"logits": (4, 3, 4, 4), "target": (4, 4, 4), "target_multi_hot": (4, 3, 4, 4), "features": (4, 4)},
    "probabilistic_segmentation": {
        "sample_logits": (4, 2, 3, 4, 4),
        "rater_targets": (4, 2, 4, 4),
        "latent_kl": (4,),
        "target": (4, 4, 4),
        "features": (4, 4),
    },
    "separation": {
        "logits": (4, 3, 5, 5),
        "target": (4, 5, 5),
        "target_multi_hot": (4, 3, 5, 5),
        "features": (4, 4),
        "mixture": (4, 16),
        "mixture_magnitudes": (4, 5, 5),
        "target_signals": (4, 3, 16),
        "target_magnitudes": (4, 3, 5, 5),
    },
    "embedding": {"embeddings": (4, 5), "target": (4,), "features": (4, 8)},
    "self_supervised": {"projections_1": (4, 5), "projections_2": (4, 5), "features_1": (4, 8), "features_2": (4, 8), "features": (4, 8)},
    "distillation": {
        "logits": (4, 3),
        "target": (4,),
        "target_multi_hot": (4, 3),
        "features": (4, 8),
        "teacher_logits": (4, 3),
        "teacher_features": (4, 16),
    },
    "physics_informed": {
        "target": (4, 1),
        "prediction": (4, 1),
        "residual": (4, 2),
        "initial_residual": (4, 2),
        "boundary_residual": (4, 2),
        "features": (4, 8),
    },
    "density_estimation": {
        "log_density": (4,),
        "log_noise": (4,),
        "noise_log_density": (4, 3),
        "noise_log_noise": (4, 3),
        "normalised_log_density": (4,),
        "features": (4, 8),
    },
    "sparse_recovery": {"target": (4, 6), "prediction": (4, 6), "measurement_residual": (4, 4), "features": (4, 8)},
    "image_regression": {"target": (4, 16), "prediction": (4, 16), "image": (4, 1, 4, 4), "target_image": (4, 1, 4, 4), "features": (4, 4)},
    "rating": {
        "logits": (4, 3),
        "target": (4,),
        "target_multi_hot": (4, 3),
        "features": (4, 8),
        "target_mean": (4,),
        "target_std": (4,),
        "group": (4,),
        "level_score": (4,),
    },
    "language_modelling": {"logits": (4, 11, 6), "target": (4, 6), "hidden_states": (4, 6, 8), "features": (4, 6, 8), "output_weight": (11, 8)},
    "ctr": {"logits": (4, 1), "target_multi_hot": (4, 1), "branch_logits": (4, 1, 1), "features": (4, 8)},
    "ranking": {"logits": (4, 3), "target": (4,), "target_multi_hot": (4, 3), "features": (4, 8), "positive_scores": (4,), "negative_scores": (4, 100)},
    "adversarial_calibration": {
        "logits": (4, 3),
        "target": (4,),
        "clean_embeddings": (4, 16),
        "adversarial_embeddings": (4, 16),
        "teacher_features": (4, 16),
        "class_centers": (3, 16),
    },
    "class_incremental": {  # in the first phase, of two classes; four prototypes each
        "logits": (8, 3),
        "target": (8,),
        "features": (8, 8),
        "feature_means": (2, 8),
        "feature_covariances": (2, 8, 8),
        "class_target": (2,),
        "is_old": (2,),
        "output_weight": (2, 8),
        "output_bias": (2,),
    },
    "label_proportions": {"logits": (4, 3), "features": (4, 8), "proportions": (4, 3), "bag": (4,), "bag_size": (4,), "instance_target": (4,)},
    "noisy_pairs": {
        "projections_1": (4, 5),
        "projections_2": (4, 5),
        "features_1": (4, 8),
        "features_2": (4, 8),
        "embeddings_1": (4, 10),
        "embeddings_2": (4, 10),
        "target": (4,),
        "training_losses": (2, 20),
    },
    "auctions": {
        "logits": (4, 3),
        "target_multi_hot": (4, 3),
        "features": (4, 8),
        "teacher_logits": (4, 3),
        "teacher_features": (4, 16),
        "bids": (4, 3),
        "click_rate": (4, 3),
    },
}
NOT_A_MEAN = {
    *("embedding", "self_supervised", "calibration", "rejection", "density_estimation"),
    *("probabilistic_segmentation", "class_incremental", "noisy_pairs"),
}
"""Tasks in which the loss of two halves is not that of the whole: pairs across are missing, samples are left out or drawn."""
GIVEN_BY_THE_BUILDER = {"model", "objective", "optimizer", "schedule", "metrics", "transforms", "log_every", "teacher"}


def made(case: str, **more: Any) -> tuple[tasks.Task, Any]:
    name, head = CASES[case]
    return build(name, loss=OTHER_HEADS[head]() if head else None, **more)


def first_batch(data: Any) -> dict[str, Tensor]:
    return next(iter(data.train_dataloader()))


def test_the_options_are_the_tasks():
    assert set(tasks.BY_NAME) == set(OPTIONS) == set(SHAPES) == set(LOSSES)


@pytest.mark.parametrize("name", OPTIONS)
class TestOption:
    def test_file(self, name: str):
        text = (CONF / "task" / f"{name}.yaml").read_text()
        assert text.startswith("# ") and len(text.splitlines()[0]) > 20
        option = yaml.safe_load(text)
        assert option.pop("_target_") == f"components.tasks.{tasks.BY_NAME[name].__name__}"
        chosen = {key: value for entry in option.pop("defaults") for key, value in entry.items()}
        assert set(chosen) == {"override /loss", "override /metrics"}
        assert (CONF / "loss" / f"{chosen['override /loss']}.yaml").exists()
        parameters = {}
        for cls in tasks.BY_NAME[name].__mro__:
            if issubclass(cls, tasks.Task):
                parameters |= {k: p for k, p in inspect.signature(cls.__init__).parameters.items() if p.kind is p.KEYWORD_ONLY}
        settable = {k for k in parameters if k not in GIVEN_BY_THE_BUILDER and (k not in FACTS or k == "embedding_dim")}
        assert set(option) == settable
        for key in settable - {"augment"}:
            assert option[key] == parameters[key].default, key

    def test_offers_are_a_literal_of_known_names(self, name: str):
        cls = tasks.BY_NAME[name]
        tree = ast.parse(Path(inspect.getfile(cls)).read_text())
        body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__).body
        value = next(node.value for node in body if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "offers")
        assert isinstance(value, ast.Call)
        assert frozenset(ast.literal_eval(value.args[0])) == cls.offers
        assert cls.offers <= set(QUANTITIES)

    def test_class_is_found_by_its_name(self, name: str):
        task, _ = build(name)
        assert next(n for n, cls in tasks.BY_NAME.items() if isinstance(task, cls)) == name


@pytest.mark.parametrize("case", CASES)
class TestTask:
    def test_gives_what_it_offers(self, case: str):
        task, data = made(case)
        batch = first_batch(data)
        quantities = task.quantities(batch)
        by_the_objective = {"loss_fn", "per_sample_loss"}
        for name in task.offered - by_the_objective:
            value = quantities[name]
            if name in SHAPES[CASES[case][0]]:
                assert tuple(value.shape) == SHAPES[CASES[case][0]][name], name
        assert set(SHAPES[CASES[case][0]]) >= task.offered - tasks.COMMON_OFFERS
        assert quantities["step"] == quantities["epoch"] == 0 and quantities["model"] is task.model
        assert torch.equal(quantities["inputs"], batch["inputs"]) and torch.equal(quantities["index"], batch["index"])

    def test_every_trained_parameter_gets_a_gradient(self, case: str):
        task, data = made(case)
        task.training_step(first_batch(data), 0).backward()
        optimizer = task.configure_optimizers()
        assert optimizer is not None
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in task.named_parameters():
            assert (id(parameter) in trained) == parameter.requires_grad
            assert (parameter.grad is not None) == parameter.requires_grad, f"{name} would stop DDP"

    def test_trains_validates_and_tests(self, case: str):
        task, data = made(case)
        before = torch.cat([p.detach().flatten().clone() for p in task.parameters() if p.requires_grad])
        recorder = Recorder()
        fit = trainer(recorder, max_epochs=2)
        fit.fit(task, datamodule=data)
        fit.test(task, datamodule=data, verbose=False)
        logged = {key for _, row in recorder.rows for key in row}
        assert {"train/loss", "val/loss", "test/loss", "lr-SGD", "epoch"} <= logged
        assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for _, row in recorder.rows)
        after = torch.cat([p.detach().flatten() for p in task.parameters() if p.requires_grad])
        assert not torch.equal(before, after)
        assert fit.global_step == 10

    def test_the_same_seed_gives_the_same_bits(self, case: str):
        results = []
        for _ in range(2):
            lightning.seed_everything(3, verbose=False)
            task, data = made(case, dropout=0.3)
            recorder = Recorder()
            trainer(recorder).fit(task, datamodule=data)
            results.append(([*task.state_dict().values()], recorder.rows))
        assert all(torch.equal(a, b) for a, b in zip(results[0][0], results[1][0], strict=True)) and results[0][1] == results[1][1]

    def test_in_bfloat16(self, case: str):
        task, data = made(case)
        recorder = Recorder()
        fit = trainer(recorder, precision="bf16-mixed")
        fit.fit(task, datamodule=data)
        fit.test(task, datamodule=data, verbose=False)
        assert all(p.dtype == torch.float32 for p in task.parameters())
        assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for _, row in recorder.rows)

    def test_accumulated_gradients_are_the_mean(self, case: str):
        if CASES[case][0] in NOT_A_MEAN:
            task, data = made(case)
            fit = trainer(accumulate_grad_batches=2)
            fit.fit(task, datamodule=data)
            assert fit.global_step == 3
            return
        ends = []
        for batch_size, accumulate in ((8, 1), (4, 2)):
            task, data = made(case, data=TinyData(CASES[case][0], samples=16, batch_size=batch_size))
            fit = trainer(accumulate_grad_batches=accumulate)
            fit.fit(task, datamodule=data)
            assert fit.global_step == 2
            ends.append(task.state_dict())
        for key, value in ends[0].items():
            torch.testing.assert_close(ends[1][key], value, msg=lambda text, key=key: f"{key}: {text}")

    def test_predicts_columns_of_the_batch(self, case: str):
        task, data = made(case)
        task.eval()
        with torch.no_grad():
            columns = task.predict({"inputs": first_batch(data)["inputs"]})
        assert columns and all(len(column) == 4 and bool(torch.isfinite(column.float()).all()) for column in columns.values())
        predicted = trainer().predict(task, dataloaders=data.val_dataloader())
        assert predicted is not None and [len(next(iter(part.values()))) for part in predicted] == [4, 3]

    def test_a_checkpoint_holds_all_of_it(self, case: str, tmp_path: Path):
        task, data = made(case)
        fit = trainer()
        fit.fit(task, datamodule=data)
        fit.save_checkpoint(tmp_path / "a.ckpt")
        checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
        other, _ = made(case, seed=9)
        other.load_state_dict(checkpoint["state_dict"])
        assert all(torch.equal(a, b) for a, b in zip(task.state_dict().values(), other.state_dict().values(), strict=True))
        recorders = [Recorder(), Recorder()]
        for tested, recorder in zip((task, other), recorders, strict=True):
            trainer(recorder).test(tested, datamodule=data, verbose=False)
        assert recorders[0].rows[0][1]["test/loss"] == recorders[1].rows[0][1]["test/loss"]
