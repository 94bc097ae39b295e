"""Every option of conf/metrics goes through the same trials, on quantities such as its task offers."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import get_class
from torch import Tensor
from torchmetrics import Metric

from components.binding import Bound, bind
from components.quantities import QUANTITIES
from components.tasks.resume import load_metric_state, metric_state

OPTIONS = Path(__file__).parents[3] / "conf" / "metrics"
NAMES = sorted(path.stem for path in OPTIONS.glob("*.yaml"))
EMPTY = {"none", "self_supervised", "language_modelling"}
LOWER_IS_BETTER = {"nll", "nmse", "objective", "rel_l2", 
    *("betti_matching_error", "betti_number_error", "brier", "collapse", "component_error", "cost"),
    *("ece", "eer", "fdr", "fgsm_rmse", "fgsm_rmse_large"),
    *("fpr", "ged", "ks", "logloss", "lsd", "madl", "mae", "mape", "mase", "max_drawdown", "mbe", "mse", "regret", "rmse"),
    *("small_scale_lsd", "smape", "volatility"),
}
CLASSES, SIZE = 4, 48
FACTS = {"num_classes": CLASSES, "num_targets": 3, "num_outputs": 9, "class_names": ["a", "b", "c", "d"], "num_samples": 100, "embedding_dim": 5}
FACTS |= {"num_features": 5}
MODEL = torch.nn.Linear(5, 3)  # of metrics that ask for the model, from inputs of 5 to targets of 3


def quantities(kind: str, size: int = SIZE, seed: int = 0) -> dict[str, Tensor]:
    """What the task of this kind offers, random."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=g)

    def classes(*shape: int) -> Tensor:
        return torch.randint(CLASSES, (size, *shape), generator=g)

    match kind:
        case "classification" | "softmax_collapse" | "calibration":
            return {"logits": normal(CLASSES), "target": classes()}
        case "binary" | "confusion" | "rejection":
            return {"logits": normal(1), "target_multi_hot": (normal(1) > 0).float()}
        case "multilabel":
            return {"logits": normal(CLASSES), "target_multi_hot": (normal(CLASSES) > 0).float()}
        case "campaign":
            return {"logits": normal(1), "target_multi_hot": (normal(1) > 0).float(), "lifetime_value": 80 * normal().exp()}
        case "regression" | "errors" | "spectrum":
            return {"prediction": normal(3), "target": normal(3)}
        case "robustness":
            return {"inputs": normal(5), "logits": normal(CLASSES), "target": classes() % 3}
        case "adversarial":
            return {"inputs": normal(5), "prediction": normal(3), "target": normal(3)}
        case "returns":
            return {"prediction": normal(3), "target": normal(3), "index": torch.arange(size)}
        case "forecasting":
            return {"prediction": normal(6, 3), "target": normal(6, 3), "history": normal(12, 3)}
        case "segmentation" | "topology" | "connectivity":
            return {"logits": normal(CLASSES, 5, 5), "target": classes(5, 5)}
        case "embedding" | "few_shot" | "verification":
            return {"embeddings": normal(5), "target": classes(), "index": torch.arange(size)}
        case "segmentation_samples":
            return {"sample_logits": normal(6, CLASSES, 5, 5), "rater_targets": classes(3, 5, 5)}
        case "separation":  # four sources; F = 9, T = 5: windows of 16 samples, hops of 4
            return {"logits": normal(CLASSES, 9, 5), "target": classes(9, 5), "mixture": normal(16), "target_signals": normal(CLASSES, 16)}
        case "distillation":
            return {"logits": normal(CLASSES), "target": classes(), "teacher_logits": normal(CLASSES)}
        case "physics_informed":
            return {"prediction": normal(3), "target": normal(3)}
        case "sparse_recovery":
            return {"prediction": normal(3), "target": normal(3), "measurement_residual": normal(2)}
        case "image_regression":
            return {"prediction": normal(25), "target": normal(25)}
        case "density_estimation":
            return {"normalised_log_density": normal()}
        case "rating":
            return {"level_score": 3 + normal(), "target_mean": 3 + normal(), "group": torch.arange(size) % 2}
        case "ranking" | "extreme" | "ctr":
            wanted = (normal(CLASSES if kind != "ctr" else 1) > 0).float()
            return {"logits": normal(*wanted.shape[1:]), "target_multi_hot": wanted}
        case "label_proportions":
            return {"logits": normal(CLASSES), "instance_target": classes()}
        case "noisy_pairs":
            return {"embeddings_1": normal(5), "embeddings_2": normal(5), "target": torch.arange(size) // 2}
        case "auctions":
            clicks = {"logits": normal(CLASSES), "target_multi_hot": (normal(CLASSES) > 0).float()}
            return clicks | {"bids": normal(CLASSES).exp(), "click_rate": normal(CLASSES).sigmoid()}
    raise AssertionError(f"no quantities for metrics={kind}")


def nodes(kind: str) -> dict[str, dict[str, Any]]:
    text = (OPTIONS / f"{kind}.yaml").read_text().replace("${task.ignore_index}", "-100")
    return yaml.safe_load(text)


def build(kind: str) -> dict[str, Bound]:
    """The option's metrics, facts filled in by name and bound as the builder binds them."""
    built = {}
    for name, node in nodes(kind).items():
        metric_class, inputs = get_class(node.pop("_target_")), node.pop("inputs")
        taken = set(inspect.signature(metric_class).parameters)
        facts = {k: v for k, v in FACTS.items() if k in taken} | ({"num_labels": CLASSES} if "num_labels" in taken else {})
        built[name] = bind(metric_class(**(facts | node)), {*quantities(kind), "model"}, name=f"metrics.{name}", task=kind, inputs=inputs, method="update")
    return built


def update(bound: Bound, values: dict[str, Tensor]) -> None:
    bound.module.update(**{parameter: {"model": MODEL, **values}[quantity] for parameter, quantity in bound.arguments.items()})


def parts(values: dict[str, Tensor], *sizes: int) -> list[dict[str, Tensor]]:
    split = {name: value.split(list(sizes)) for name, value in values.items()}
    return [{name: value[i] for name, value in split.items()} for i in range(len(sizes))]


FILLED = [(kind, name) for kind in NAMES if kind not in EMPTY for name in nodes(kind)]


@pytest.mark.parametrize("kind", NAMES)
def test_option_file(kind):
    first = (OPTIONS / f"{kind}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and first.endswith(")")
    assert (nodes(kind) == {}) == (kind in EMPTY)
    for node in nodes(kind).values():
        assert set(node["inputs"].values()) <= set(QUANTITIES)


@pytest.mark.parametrize(("kind", "name"), FILLED)
class TestMetricContract:
    def test_whole_batch_gives_a_finite_scalar(self, kind, name):
        metric = build(kind)[name]
        update(metric, quantities(kind))
        value = metric.module.compute()
        assert isinstance(metric.module, Metric)
        assert value.shape == () and value.isfinite()

    def test_batches_add_up_to_the_whole(self, kind, name):
        whole, batched = build(kind)[name], build(kind)[name]
        update(whole, quantities(kind))
        for part in parts(quantities(kind), 20, 1, 27):
            update(batched, part)
        torch.testing.assert_close(batched.module.compute(), whole.module.compute(), atol=1e-6, rtol=1e-5)

    def test_order_of_samples_does_not_matter(self, kind, name):
        straight, shuffled = build(kind)[name], build(kind)[name]
        values, order = quantities(kind), torch.randperm(SIZE, generator=torch.Generator().manual_seed(1))
        update(straight, values)
        update(shuffled, {k: v[order] for k, v in values.items()})
        torch.testing.assert_close(shuffled.module.compute(), straight.module.compute(), atol=1e-6, rtol=1e-5)

    def test_reset_forgets(self, kind, name):
        used, fresh = build(kind)[name], build(kind)[name]
        update(used, quantities(kind, seed=3))
        used.module.compute()
        used.module.reset()
        assert not used.module.update_called
        for metric in (used, fresh):
            update(metric, quantities(kind))
        assert torch.equal(used.module.compute(), fresh.module.compute())

    def test_ranks_merge_to_the_whole(self, kind, name):
        whole, first, second = (build(kind)[name] for _ in range(3))
        update(whole, quantities(kind))
        for metric, part in zip((first, second), parts(quantities(kind), 30, 18), strict=True):
            update(metric, part)
        first.module.merge_state(second.module)
        torch.testing.assert_close(first.module.compute(), whole.module.compute(), atol=1e-6, rtol=1e-5)

    def test_synchronises_every_state_over_ranks(self, kind, name):
        """torchmetrics' own synchronisation, with the gathering of two ranks played: this rank's states and the other's."""
        whole, ours, theirs = (build(kind)[name] for _ in range(3))
        update(whole, quantities(kind))
        for metric, part in zip((ours, theirs), parts(quantities(kind), 30, 18), strict=True):
            update(metric, part)
            update(metric, part)  # twice, so that list states hold two entries
        update(whole, quantities(kind))
        metric, other = ours.module, theirs.module
        states = iter([_joined(getattr(other, key)) for key in metric._defaults])
        metric.dist_sync_fn, metric.distributed_available_fn = lambda value, group=None: [value, next(states)], lambda: True
        value = metric.compute()
        assert next(states, None) is None
        torch.testing.assert_close(value, whole.module.compute(), atol=1e-6, rtol=1e-5)

    def test_state_survives_a_checkpoint(self, kind, name, tmp_path):
        unbroken, saved, resumed = (build(kind)[name] for _ in range(3))
        first, second = parts(quantities(kind), 30, 18)
        update(unbroken, first)
        update(saved, first)
        torch.save(metric_state(saved.module), tmp_path / "state.pt")
        load_metric_state(resumed.module, torch.load(tmp_path / "state.pt", weights_only=True))
        for metric in (unbroken, resumed):
            update(metric, second)
        assert torch.equal(resumed.module.compute(), unbroken.module.compute())

    def test_leaves_its_inputs_alone(self, kind, name):
        metric, values = build(kind)[name], quantities(kind)
        kept = copy.deepcopy(values)
        update(metric, values)
        metric.module.compute()
        assert all(torch.equal(values[k], kept[k]) for k in values)

    def test_takes_what_is_not_contiguous(self, kind, name):
        plain, strided = build(kind)[name], build(kind)[name]
        values = quantities(kind)
        update(plain, values)
        update(strided, {k: torch.stack([v, v], -1)[..., 0].mT.contiguous().mT if v.ndim > 1 else v for k, v in values.items()})
        torch.testing.assert_close(strided.module.compute(), plain.module.compute())

    def test_bfloat16_predictions(self, kind, name):
        exact, rounded = build(kind)[name], build(kind)[name]
        values = {k: v.bfloat16() if k in ("logits", "prediction", "embeddings", "teacher_logits") else v for k, v in quantities(kind).items()}
        update(rounded, values)
        update(exact, {k: v.float() if k != "target_multi_hot" and v.is_floating_point() else v for k, v in values.items()})
        torch.testing.assert_close(rounded.module.compute(), exact.module.compute(), atol=1e-5, rtol=1e-5)

    def test_says_which_way_is_better(self, kind, name):
        assert build(kind)[name].module.higher_is_better is (name not in LOWER_IS_BETTER)

    def test_clones_are_apart(self, kind, name):
        """A task holds a copy for each stage."""
        metric = build(kind)[name].module
        copied = metric.clone()
        update(Bound(copied, build(kind)[name].arguments, name), quantities(kind))
        assert copied.update_called and not metric.update_called


def _joined(state: Any) -> Tensor:
    return torch.cat(state) if isinstance(state, list) else state
