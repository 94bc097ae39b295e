"""The trials that every transform of training batches passes. Inherit them for your own and give one fixture::

    class TestMyTransform(TransformContract):
        @pytest.fixture
        def transform(self):
            return MyTransform()
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.testing.regularizers import assert_documented


class TransformContract:
    """Give the fixture ``transform``. Override :meth:`batch` where it takes something other than pictures."""

    @pytest.fixture
    def transform(self) -> nn.Module:
        raise NotImplementedError("give a fixture named transform that returns an instance of yours")

    def batch(self, size: int = 6) -> dict[str, Any]:
        """A batch of pictures with two channels, classes and something that no transform knows."""
        generator = torch.Generator().manual_seed(0)
        return {
            "inputs": torch.randn(size, 2, 8, 8, generator=generator),
            "target": torch.arange(size) % 3,
            "index": torch.arange(size) + 10,
            "note": "kept",
        }

    def test_returns_a_new_batch_and_leaves_the_old(self, transform: nn.Module) -> None:
        batch = self.batch()
        before = copy.deepcopy(batch)
        result = transform(batch)
        assert result is not batch
        assert batch.keys() == before.keys(), "the given batch gained or lost entries"
        assert_same(batch, before)

    def test_keeps_what_the_batch_has(self, transform: nn.Module) -> None:
        batch = self.batch()
        result = transform(batch)
        assert set(batch) <= set(result)
        assert torch.equal(result["index"], batch["index"]), "index says which sample it is: it must stay"
        assert result["note"] == "kept"
        for name in ("inputs", "target"):
            assert result[name].shape[0] == batch[name].shape[0]
            assert result[name].dtype == batch[name].dtype

    def test_inputs_are_finite_and_change(self, transform: nn.Module) -> None:
        torch.manual_seed(0)
        batch = self.batch()
        results = [transform(batch)["inputs"] for _ in range(20)]
        assert all(bool(r.isfinite().all()) for r in results)
        assert any(r.shape != batch["inputs"].shape or not torch.equal(r, batch["inputs"]) for r in results), "it never changed anything in 20 tries"

    def test_same_seed_same_bits_whatever_came_before(self, transform: nn.Module) -> None:
        """All randomness comes from torch's global state, which a checkpoint holds."""
        torch.manual_seed(3)
        first = transform(self.batch())
        transform(self.batch())
        torch.manual_seed(3)
        assert_same(transform(self.batch()), first)

    def test_mixtures_are_complete(self, transform: nn.Module) -> None:
        """``mix_target`` and ``mix_weight`` come together: targets like the batch's own, and one share in [0, 1]."""
        for seed in range(10):
            torch.manual_seed(seed)
            batch = self.batch()
            result = transform(batch)
            assert ("mix_target" in result) == ("mix_weight" in result)
            if "mix_target" in result:
                assert result["mix_weight"].shape == ()
                assert result["mix_weight"].is_floating_point()
                assert 0 <= result["mix_weight"].item() <= 1
                for name, other in result["mix_target"].items():
                    assert other.shape == batch[name].shape
                    assert other.dtype == batch[name].dtype

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_keeps_the_precision(self, transform: nn.Module, dtype: torch.dtype) -> None:
        batch = self.batch()
        result = transform({**batch, "inputs": batch["inputs"].to(dtype)})["inputs"]
        assert result.dtype == dtype
        assert bool(result.isfinite().all())

    def test_takes_a_batch_of_one(self, transform: nn.Module) -> None:
        assert len(transform(self.batch(1))["inputs"]) == 1

    def test_refuses_tokens(self, transform: nn.Module) -> None:
        batch = self.batch()
        with pytest.raises(ValueError, match="floating"):
            transform({**batch, "inputs": torch.zeros(batch["inputs"].shape, dtype=torch.long)})

    def test_never_waits_for_the_device(self, transform: nn.Module) -> None:
        """It runs on tensors without data, where ``.item()``, ``float(tensor)`` and branches on values are errors."""
        batch = {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in self.batch().items()}
        result = transform.to("meta")(batch)
        assert result["inputs"].device.type == "meta"
        assert result["target"].device.type == "meta"

    def test_is_documented(self, transform: nn.Module) -> None:
        assert_documented(type(transform))


def assert_same(one: Any, other: Any) -> None:
    """Equal to the last bit: tensors, and dictionaries of them."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other
