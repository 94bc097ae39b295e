"""Every option of conf/data goes through the same trials."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import components.data
from components.data import Batch, ByteText, DataModule, Series
from components.quantities import FACTS

from .conftest import CONF

Make = Callable[..., DataModule]
Loaded = Callable[[str], DataModule]
TASKS = {
    "classification",
    "regression",
    "forecasting",
    "segmentation",
    "language_modelling",
    "label_proportions",
    "noisy_pairs",
    "ranking",
    "ctr",
    "auctions",
    "targeting",
    "probabilistic_segmentation",
    "separation",
    "embedding",
    "density_estimation",
    "image_regression",
    "physics_informed",
    "rating",
    "sparse_recovery",
}
REAL_TARGETS = {"regression", "forecasting", "density_estimation", "image_regression", "physics_informed", "sparse_recovery"}
CORRUPTIONS = {"label_noise", "noise_kind", "imbalance", "fraction", "missing"}


def batches(data: DataModule, split: str = "train", epoch: int = 0, start: int = 0, batch_size: int = 16, **options: Any) -> list[Batch]:
    return list(data.loader(split, batch_size, position=lambda: (epoch, start), **options))


def indices(found: list[Batch]) -> list[int]:
    return torch.cat([b["index"] for b in found]).tolist()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def chosen_by(option: str) -> dict[str, str]:
    """What an option's defaults list chooses for other groups."""
    return {key: value for entry in yaml.safe_load((CONF / f"{option}.yaml").read_text())["defaults"] for key, value in entry.items()}


def test_option_file(option: str) -> None:
    text = (CONF / f"{option}.yaml").read_text()
    config = yaml.safe_load(text)
    first = text.splitlines()[0]
    assert first.startswith("# ") and first.endswith(")") and len(first) < 170, "line 1 says what it is, and its source in brackets"
    chosen = chosen_by(option)
    assert chosen["override /task@_global_.task"] in TASKS and "override /model@_global_.model" in chosen
    assert config["_target_"].removeprefix("components.data.") in components.data.__all__
    assert config["seed"] == "${seed}"
    assert set(config) >= CORRUPTIONS | {"batch_size", "eval_batch_size", "drop_last", "val_fraction", "test_fraction"}


def test_setup_is_fast(option: str, make: Make, loaded: Loaded) -> None:
    loaded(option)  # imports
    data = make(option)
    start = time.process_time()
    data.setup()
    assert time.process_time() - start < 2


def test_facts(option: str, loaded: Loaded) -> None:
    data = loaded(option)
    facts = data.facts()
    batch = batches(data)[0]
    assert set(facts) <= set(FACTS)
    assert facts["num_samples"] == data.size(data.splits["train"]) > 0
    assert facts["input_shape"] == tuple(batch["inputs"].shape[1:])
    if isinstance(data, ByteText):
        assert (facts["vocab_size"], facts["sequence_length"]) == (256, batch["inputs"].shape[1])
        return
    target = torch.cat([b["target"] for b in batches(data)])
    if isinstance(data, Series):
        length, channels = facts["input_shape"]
        assert (length, channels) == (facts["history_length"], facts["in_channels"])
        assert target.shape[1:] == (facts["horizon"], facts["num_targets"])
        assert facts["target_kind"] == "real"
        return
    shape = facts["input_shape"]
    assert facts["num_features"] == shape[0] if len(shape) == 1 else (facts["in_channels"], *facts["image_size"]) == shape
    if facts["target_kind"] == "real":
        assert target.shape[1:] == (facts["num_targets"],)
        return
    assert facts["num_classes"] == len(facts["class_names"]) == len(facts["class_counts"])
    if facts["target_kind"] == "multilabel":
        assert facts["class_counts"] == target.sum(0).tolist()
        assert target.shape[1] == facts["num_classes"]
    else:
        assert facts["class_counts"] == torch.bincount(target.flatten()).tolist()


def test_batches(option: str, loaded: Loaded) -> None:
    data = loaded(option)
    task = chosen_by(option)["override /task@_global_.task"]
    for split in ("train", "val", "test"):
        found = batches(data, split)
        assert sorted(indices(found)) == list(range(data.size(data.splits[split])))
        assert len(found) == len(data.loader(split, 16))
    batch = batches(data)[0]
    assert batch["index"].dtype == torch.long
    assert batch["inputs"].dtype == (torch.long if task == "language_modelling" else torch.float32)
    assert batch["target"].dtype == (torch.float32 if task in REAL_TARGETS else torch.long)
    assert len({len(v) for v in batch.values()}) == 1
    if batch["inputs"].is_floating_point():
        assert bool(torch.isfinite(batch["inputs"]).all())
        assert float(batch["inputs"].abs().max()) < 50, "scaled to [0, 1] or standardised"


def test_order_is_a_pure_function_of_seed_and_epoch(option: str, make: Make, loaded: Loaded) -> None:
    data, other = loaded(option), make(option, seed=1)
    other.setup()
    first = indices(batches(data, epoch=3, shuffle=True))
    assert first == indices(batches(data, epoch=3, shuffle=True))
    assert first != indices(batches(data, epoch=4, shuffle=True))
    assert first != indices(batches(other, epoch=3, shuffle=True))
    assert sorted(first) == list(range(len(first)))


def test_start_in_the_middle_is_the_tail_of_the_epoch(option: str, loaded: Loaded) -> None:
    data = loaded(option)
    whole = batches(data, epoch=1, shuffle=True)
    tail = batches(data, epoch=1, start=2, shuffle=True)
    assert len(tail) == len(whole) - 2
    assert all(same(a, b) for a, b in zip(whole[2:], tail, strict=True))


def test_two_ranks_share_the_batch_of_one(option: str, make: Make, loaded: Loaded) -> None:
    whole = batches(loaded(option), epoch=2, shuffle=True, batch_size=16)
    ranks = []
    for rank in range(2):
        data = make(option)
        data.setup()
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        ranks.append(batches(data, epoch=2, shuffle=True, batch_size=8))
    assert len(ranks[0]) == len(ranks[1]) == len(whole)
    for one, left, right in zip(whole, *ranks, strict=True):
        assert len(left["index"]) == len(right["index"]) == 8
        both = torch.stack([left["index"], right["index"]], dim=1).flatten()
        assert both[: len(one["index"])].tolist() == one["index"].tolist()


def test_splits_are_disjoint(option: str, loaded: Loaded) -> None:
    data = loaded(option)
    reach = data.horizon if isinstance(data, Series) else 1  # two parts' forecasts may not share a time step
    covered = {name: {int(row) + i for row in rows for i in range(reach)} for name, rows in data.rows.items()}
    assert all(covered.values())
    assert all(not covered[a] & covered[b] for a, b in combinations(covered, 2))
    assert all(len(rows) == data.size(data.splits[name]) for name, rows in data.rows.items())


def test_fingerprint(option: str, make: Make, loaded: Loaded) -> None:
    data, again, other_seed = loaded(option), make(option), make(option, seed=5)
    again.setup()
    other_seed.setup()
    assert data.fingerprint() == again.fingerprint() == other_seed.fingerprint(), "splits do not depend on seed"
    if not isinstance(data, Series) and option != "text":
        resplit = make(option, split_seed=1)
        resplit.setup()
        assert resplit.fingerprint() != data.fingerprint()


def test_corruption_is_reproducible_and_for_training_only(option: str, make: Make, loaded: Loaded) -> None:
    clean = loaded(option)
    corrupted = {"label_noise": 0.3, "fraction": 0.5, "missing": 0.2, "batch_size": 4}
    data, again, other = make(option, **corrupted), make(option, **corrupted), make(option, **corrupted, seed=1)
    for module in (data, again, other):
        module.setup()
    assert data.fingerprint() == again.fingerprint() != other.fingerprint()
    assert abs(data.facts()["num_samples"] - clean.facts()["num_samples"] / 2) <= max(6, len(clean.class_names) / 2)  # a rounding for every class
    for part in ("val", "test"):
        assert same(data.splits[part], clean.splits[part])
    positions = {int(row): i for i, row in enumerate(clean.rows["train"])}
    kept = torch.tensor([positions[int(row)] for row in data.rows["train"]])
    before, after = clean.fetch("train", kept), data.fetch("train", torch.arange(len(kept)))
    changed, columns_of_two_values = before["inputs"] != after["inputs"], ("csv", "parquet", "huggingface", "implicit_feedback")
    if option not in columns_of_two_values:  # there the mean of what is left may be the lost value itself
        draws = changed.numel() / (changed.shape[1] if changed.ndim == 4 else 1)  # a pixel is lost in all channels
        assert abs(float(changed.float().mean()) - 0.2) < 4 * (0.2 * 0.8 / draws) ** 0.5
    assert bool(changed.any())
    by_sample = isinstance(clean, Series) or option == "sparse_signals"  # exchanged targets that agree in places: most entries are 0
    wrong = (before["target"] != after["target"]).flatten(1 if by_sample else 0)
    share = float(wrong.any(1).float().mean() if by_sample else wrong.float().mean())
    least = 0.05 if option == "line_signal" else 0.25  # it has few values, so that most exchanged targets are equal
    assert least <= share <= 0.35


def test_state_round_trip(option: str, make: Make, loaded: Loaded) -> None:
    data = loaded(option)
    buffer = io.BytesIO()
    torch.save(data.state_dict(), buffer)
    buffer.seek(0)
    restored = make(option)
    restored.load_state_dict(torch.load(buffer, weights_only=True))
    assert restored.facts() == data.facts(), "facts need no data once the state is loaded"
    assert restored.class_names == data.class_names
    restored.setup()
    assert restored.fingerprint() == data.fingerprint()
    assert restored.state_dict().keys() == data.state_dict().keys()


def test_facts_need_setup(option: str, make: Make) -> None:
    with pytest.raises(ValueError, match=r"call setup\(\) before facts\(\)"):
        make(option).facts()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, but got 0"),
        ({"label_noise": 1.5}, r"label_noise must be in \[0, 1\], but got 1.5"),
        ({"noise_kind": "symetric"}, "did you mean 'symmetric'"),
        ({"fraction": 0.0}, r"fraction must be in \(0, 1\]"),
        ({"imbalance": 0.5}, "imbalance must be >= 1"),
        ({"missing": 1.0}, r"missing must be in \[0, 1\)"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "val_fraction"),
    ],
)
def test_wrong_options(option: str, make: Make, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):  # Hydra wraps the ValueError
        make(option, **wrong)


def test_batch_larger_than_the_data(option: str, make: Make) -> None:
    data = make(option, batch_size=1_000_000)
    with pytest.raises(ValueError, match=r"batch_size must be at most the \d+ training samples, but got 1000000"):
        data.setup()
    with pytest.raises(ValueError, match="batch_size"):
        data.setup()
