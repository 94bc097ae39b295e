"""The trials that every loss passes: inherit :class:`LossContract` in a test and supply one fixture.

>>> class TestMyLoss(LossContract):                     # in your tests; pytest finds the trials
...     @pytest.fixture
...     def loss(self):
...         return MyLoss(gamma=2.0)

Inputs are made from the vocabulary: :func:`example_quantities` gives every name of :mod:`components.quantities` a small example.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.binding import requirements
from components.losses.base import IGNORE_INDEX
from components.quantities import QUANTITIES

REAL_VALUED = {"prediction", "quantiles", "log_variance"}
FIXED_SIZE = {"output_weight", "output_bias", "class_centers", "training_losses", "model", "step", "epoch", "loss_fn"}
"""Quantities without a batch dimension."""

TRIALS = frozenset(
    (
        *("gradient", "second_order", "extreme_float32", "extreme_bfloat16", "reductions", "permutation", "ignored", "class_weight"),
        *("sizes", "errors", "compile", "vmap", "no_host_sync", "autocast", "docstring"),
    )
)

DATA = (
    *("target", "teacher_", "inputs", "history", "lifetime_"),
    *("bids", "click_rate", "class_centers", "is_old", "mixture", "proportions"),
)
"""How the names of quantities begin that no model computes: they get no gradient."""

CLASSES, FEATURES, TOKENS, TARGETS = 5, 6, 4, 2


def example_facts(batch: int = 8) -> dict[str, Any]:
    """Facts of the data that go with :func:`example_quantities`."""
    return {
        "num_classes": CLASSES,
        "class_counts": [40, 30, 20, 10, 5],
        "class_names": list("abcde"),
        "num_samples": 105,
        "num_features": FEATURES,
        "num_targets": TARGETS,
        "num_outputs": CLASSES,
        "head": "point",
        "vocab_size": CLASSES,
        "sequence_length": TOKENS,
        "feature_dim": FEATURES,
        "embedding_dim": FEATURES,
        "total_steps": 100,
        "steps_per_epoch": 10,
        "batch_size": batch,
    }


def example_quantities(
    names: Iterable[str],
    *,
    batch: int = 8,
    classes: int = CLASSES,
    spatial: tuple[int, ...] = (),
    features: int = FEATURES,
    num_quantiles: int = 3,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Any]:
    """A small example of each named quantity, fitting each other; no gradients switched on.

    Args:
        names: names of :data:`components.quantities.QUANTITIES`. They decide what ``target`` is: real values beside ``prediction``, ``quantiles`` or
            ``log_variance``, tokens beside ``hidden_states``, else classes, of which each that occurs has at least two samples (in a batch of two or more).
        batch: N.
        classes: C and V.
        features: D.
        spatial: (d1, …) of ``logits`` and ``target``.
        num_quantiles: Q.
        dtype: of what is real-valued.
        seed: of the values; the same seed gives the same values.
    """
    names = list(names)
    unknown = [name for name in names if name not in QUANTITIES]
    if unknown:
        raise ValueError(f"names must be quantities of components.quantities, but got {', '.join(unknown)}")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def class_indices(*shape: int) -> Tensor:
        if not shape[1:]:
            return (torch.arange(batch) // 2 % classes)[torch.randperm(batch, generator=generator)]
        return torch.randint(classes, shape, generator=generator)

    def covariances(count: int) -> Tensor:
        root = normal(count, features, features)
        return root @ root.mT / features

    logits_shape = (batch, classes, *spatial)
    if REAL_VALUED & set(names):
        target = normal(batch, TARGETS)
    elif "hidden_states" in names:
        target = class_indices(batch, TOKENS)
    else:
        target = class_indices(batch, *spatial)
    make: dict[str, Callable[[], Any]] = {
        "inputs": lambda: normal(batch, features),
        "index": lambda: torch.arange(batch),
        "target": lambda: target,
        "features": lambda: normal(batch, features),
        "model": lambda: nn.Linear(features, classes, dtype=dtype),
        "step": lambda: 3,
        "epoch": lambda: 1,
        "loss_fn": lambda: lambda quantities: F.cross_entropy(quantities["logits"], quantities["target"]),
        "per_sample_loss": lambda: normal(batch).exp(),
        "logits": lambda: 2 * normal(*logits_shape),
        "target_multi_hot": lambda: torch.randint(2, logits_shape, generator=generator).to(dtype),
        "positive_scores": lambda: normal(batch),
        "negative_scores": lambda: normal(batch, 7),
        "branch_logits": lambda: 2 * normal(*logits_shape, 2),
        "bids": lambda: normal(*logits_shape).exp(),
        "click_rate": lambda: normal(*logits_shape).sigmoid(),
        "prediction": lambda: normal(batch, TARGETS),
        "log_variance": lambda: normal(batch, TARGETS),
        "quantiles": lambda: normal(batch, TARGETS, num_quantiles),
        "history": lambda: normal(batch, 7, TARGETS),
        "embeddings": lambda: normal(batch, features),
        "projections_1": lambda: normal(batch, features),
        "projections_2": lambda: normal(batch, features),
        "features_1": lambda: normal(batch, features),
        "features_2": lambda: normal(batch, features),
        "teacher_logits": lambda: 2 * normal(*logits_shape),
        "teacher_features": lambda: normal(batch, features),
        "hidden_states": lambda: normal(batch, TOKENS, features),
        "output_weight": lambda: normal(classes, features),
        "sample_logits": lambda: 2 * normal(batch, 3, classes, *spatial),
        "rater_targets": lambda: torch.randint(classes, (batch, 3, *spatial), generator=generator),
        "latent_kl": lambda: normal(batch).exp(),
        "target_projections": lambda: tuple(normal(*logits_shape[: 2 + i], *logits_shape[3 + i :]).sigmoid() for i in range(len(spatial))),
        "mixture": lambda: normal(batch, 16),
        "mixture_magnitudes": lambda: normal(batch, *spatial).abs(),
        "target_signals": lambda: normal(batch, classes, 16),
        "target_magnitudes": lambda: normal(*logits_shape).abs(),
        "feature_means": lambda: normal(batch, features),
        "feature_covariances": lambda: covariances(batch),
        "class_target": lambda: class_indices(batch),
        "is_old": lambda: (torch.arange(batch) % 2).to(dtype),
        "output_bias": lambda: normal(classes),
        "proportions": lambda: (F.one_hot(class_indices(batch), classes) + F.one_hot(class_indices(batch), classes)).to(dtype) / 2,
        "bag": lambda: torch.arange(batch) // 2,
        "bag_size": lambda: torch.full((batch,), 2),
        "instance_target": lambda: class_indices(batch),
        "embeddings_1": lambda: normal(batch, features),
        "embeddings_2": lambda: normal(batch, features),
        "training_losses": lambda: normal(2, max(batch, 8)).exp(),
        "adversarial_embeddings": lambda: normal(batch, features),
        "clean_embeddings": lambda: normal(batch, features),
        "class_centers": lambda: F.normalize(normal(classes, features), dim=1),
        "residual": lambda: normal(batch, TARGETS),
        "initial_residual": lambda: normal(batch, TARGETS),
        "boundary_residual": lambda: normal(batch, TARGETS),
        "lifetime_value": lambda: 50 * normal(batch).exp(),
        "measurement_residual": lambda: normal(batch, TOKENS),
        "image": lambda: normal(batch, 1, 6, 5),
        "target_image": lambda: normal(batch, 1, 6, 5),
        "target_mean": lambda: 1 + (classes - 1) * torch.rand(batch, *spatial, generator=generator, dtype=torch.float64).to(dtype),
        "target_std": lambda: 0.1 + torch.rand(batch, *spatial, generator=generator, dtype=torch.float64).to(dtype),
        "group": lambda: torch.arange(batch) % 2,
        "level_score": lambda: normal(batch),
        "log_density": lambda: normal(batch),
        "log_noise": lambda: normal(batch),
        "noise_log_density": lambda: normal(batch, 3),
        "noise_log_noise": lambda: normal(batch, 3),
        "normalised_log_density": lambda: normal(batch),
    }
    return {name: make[name]() for name in names}


class LossContract:
    """Trials of a loss. A subclass supplies ``loss``; the rest has defaults that fit the vocabulary.

    Class attributes, to override where a loss differs:
        quantities: parameter of ``forward`` -> quantity, where the names differ (third-party modules).
        exempt: name of a trial -> reason, for a trial that cannot hold; added to the loss's own ``exempt``. An exempt trial must fail: one that
            passes is an exception nobody needs.
        compile_backend: what ``torch.compile`` is tried with.
        tolerance: of comparisons between two ways to the same number, in float64.

    :data:`TRIALS` lists the trials that can be exempt.
    """

    quantities: ClassVar[Mapping[str, str]] = {}
    exempt: ClassVar[Mapping[str, str]] = {}
    compile_backend: ClassVar[str] = "aot_eager"
    tolerance: ClassVar[float] = 1e-9

    @pytest.fixture
    def loss(self) -> nn.Module:
        raise NotImplementedError("supply a fixture `loss` that returns the loss to be tried")

    def make_inputs(self, loss: nn.Module, batch: int = 8, dtype: torch.dtype = torch.float64, spatial: tuple[int, ...] = (), seed: int = 0) -> dict[str, Any]:
        """Arguments of ``loss.forward`` by parameter name; what is differentiable requires gradients."""
        names = self.arguments(loss)
        num_quantiles = len(getattr(loss, "levels", (0.1, 0.5, 0.9)))
        values = example_quantities(names.values(), batch=batch, dtype=dtype, spatial=spatial, seed=seed, num_quantiles=num_quantiles)
        return {parameter: _as_leaf(values[quantity], quantity) for parameter, quantity in names.items()}

    # -- the trials -----------------------------------------------------------------------------------------------------------
    def test_value_is_finite_and_repeatable(self, loss: nn.Module) -> None:
        for reduction in ("mean", "sum"):
            inputs = self.make_inputs(loss)
            value = _call(loss, inputs, reduction)
            assert value.shape == (), f"reduction={reduction!r} must give a scalar"
            assert torch.isfinite(value)
            assert value.dtype == torch.float64, "the loss must have the dtype of its inputs"
            assert torch.equal(value, _call(loss, inputs, reduction)), "the same inputs must give the same bits"

    def test_gradient(self, loss: nn.Module) -> None:
        """Derivatives of every element agree with finite differences, and something depends on the inputs."""
        with self.trial(loss, "gradient"):
            function, leaves = self._function_of_leaves(loss, "none", batch=3)
            assert torch.autograd.gradcheck(function, leaves, raise_exception=True)
            gradients = torch.autograd.grad(function(*leaves).sum(), leaves)
            assert any(bool(g.abs().sum() > 0) for g in gradients), "no input has a gradient"

    def test_second_order(self, loss: nn.Module) -> None:
        with self.trial(loss, "second_order"):
            function, leaves = self._function_of_leaves(loss, "none", batch=3)
            assert torch.autograd.gradgradcheck(function, leaves, raise_exception=True)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    def test_extreme_inputs_stay_finite(self, loss: nn.Module, dtype: torch.dtype) -> None:
        """Value and gradient are finite where scores are ±1e4, right or wrong, and where all are equal."""
        with self.trial(loss, f"extreme_{str(dtype).removeprefix('torch.')}"):
            for make in (lambda x: torch.where(x > 0, 1e4, -1e4), lambda x: torch.full_like(x, 1e4), torch.zeros_like, lambda x: 1e4 * x):
                for spatial in self._spatial_shapes(loss):
                    inputs = self.make_inputs(loss, dtype=dtype, spatial=spatial)
                    for name, value in inputs.items():
                        if isinstance(value, Tensor) and value.is_floating_point() and not name.startswith(("target", "bids")):
                            inputs[name] = make(value.detach()).to(dtype).requires_grad_(value.requires_grad)
                    value = _call(loss, inputs, "mean")
                    assert torch.isfinite(value), f"the value is {value.item()}"
                    for name, gradient in _gradients(value, inputs).items():
                        assert torch.isfinite(gradient).all(), f"the gradient with respect to {name} is not finite"

    def test_reductions_agree(self, loss: nn.Module) -> None:
        """sum = Σ none; mean = Σ none / Σ class weights (without weights: the mean of none)."""
        with self.trial(loss, "reductions"):
            for spatial in self._spatial_shapes(loss):
                inputs = self.make_inputs(loss, spatial=spatial)
                elements = _call(loss, inputs, "none")
                assert elements.ndim >= 1 and elements.shape[0] == 8, "reduction='none' must give the samples in dimension 0"
                self.assert_close(_call(loss, inputs, "sum"), elements.sum())
                weight = getattr(loss, "weight", None)
                if weight is None:
                    self.assert_close(_call(loss, inputs, "mean"), elements.mean())
                elif "target" in inputs and elements.shape == inputs["target"].shape:
                    self.assert_close(_call(loss, inputs, "mean"), elements.sum() / weight.double()[inputs["target"]].sum())

    def test_order_of_samples_does_not_matter(self, loss: nn.Module) -> None:
        with self.trial(loss, "permutation"):
            inputs = self.make_inputs(loss)
            order = torch.tensor([3, 1, 7, 0, 6, 2, 5, 4])
            shuffled = self._select(loss, inputs, order)
            self.assert_close(_call(loss, shuffled, "mean"), _call(loss, inputs, "mean"))
            self.assert_close(_call(loss, shuffled, "none"), _call(loss, inputs, "none")[order])

    def test_ignored_elements_contribute_nothing(self, loss: nn.Module) -> None:
        """Ignored samples: value and gradient are those of the others alone. Ignored elements within samples: their inputs do not matter."""
        marker = self._ignored_marker(loss)
        if marker is None:  # nothing to ignore by: then there must be no ignore_index to set either
            assert "ignore_index" not in _constructor(loss)
            return
        target_name, ignored = marker
        with self.trial(loss, "ignored"):
            inputs = self.make_inputs(loss)
            inputs[target_name] = inputs[target_name].clone()
            left_out, kept = torch.tensor([1, 4, 6]), torch.tensor([0, 2, 3, 5, 7])
            inputs[target_name][left_out] = ignored
            others = self._select(loss, inputs, kept)
            for reduction in ("mean", "sum"):
                value, alone = _call(loss, inputs, reduction), _call(loss, others, reduction)
                self.assert_close(value, alone)
                gradients, gradients_alone = _gradients(value, inputs), _gradients(alone, others)
                for name, gradient in gradients.items():
                    if self.arguments(loss)[name] in FIXED_SIZE:
                        self.assert_close(gradient, gradients_alone[name])
                    else:
                        self.assert_close(gradient[kept], gradients_alone[name])
                        assert (gradient[left_out] == 0).all(), f"ignored samples have a gradient with respect to {name}"
            assert (_call(loss, inputs, "none")[left_out] == 0).all()

            inputs[target_name][:] = ignored
            value = _call(loss, inputs, "mean")
            assert value == 0, "the mean over no element must be 0"
            assert all((gradient == 0).all() for gradient in _gradients(value, inputs).values())

            for spatial in self._spatial_shapes(loss):
                inputs = self.make_inputs(loss, spatial=spatial)
                target = inputs[target_name]
                hidden = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.4
                inputs[target_name] = torch.where(hidden, torch.full_like(target, ignored), target)
                before = _call(loss, inputs, "mean")
                for name, gradient in _gradients(before, inputs).items():
                    if self.arguments(loss)[name] in FIXED_SIZE:
                        continue
                    touched = _per_element(gradient, target.shape)
                    assert touched is None or (touched[hidden] == 0).all(), f"ignored elements have a gradient with respect to {name}"

    def test_class_weight(self, loss: nn.Module) -> None:
        """none = weight of the element's class × its loss; mean = Σ w ℓ / Σ w; equal weights change no mean."""
        if "weight" not in _constructor(loss):
            assert getattr(loss, "weight", None) is None
            return
        weight = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25], dtype=torch.float64)
        with self.trial(loss, "class_weight"):
            for spatial in self._spatial_shapes(loss):
                inputs = self.make_inputs(loss, spatial=spatial)
                plain, weighted, doubled = (_with_attribute(loss, "weight", w) for w in (None, weight, torch.full_like(weight, 2.0)))
                elements = _call(plain, inputs, "none")
                if "target_multi_hot" in self.arguments(loss).values():
                    of_element = weight.reshape(-1, *[1] * len(spatial)).expand_as(elements)
                else:
                    of_element = weight[inputs["target"]]
                self.assert_close(_call(weighted, inputs, "none"), of_element * elements)
                self.assert_close(_call(weighted, inputs, "sum"), (of_element * elements).sum())
                self.assert_close(_call(weighted, inputs, "mean"), (of_element * elements).sum() / of_element.sum())
                self.assert_close(_call(doubled, inputs, "mean"), _call(plain, inputs, "mean"))
            with pytest.raises(ValueError, match="weight"):
                _call(_with_attribute(loss, "weight", torch.ones(CLASSES + 1, dtype=torch.float64)), self.make_inputs(loss), "mean")

    def test_small_batches(self, loss: nn.Module) -> None:
        """One sample, none at all, all of one class: finite, and over nothing the mean is 0."""
        with self.trial(loss, "sizes"):
            for batch in (1, 0):
                inputs = self.make_inputs(loss, batch=batch)
                assert _call(loss, inputs, "none").shape[0] == batch
                for reduction in ("mean", "sum"):
                    value = _call(loss, inputs, reduction)
                    assert torch.isfinite(value) and (batch or value == 0), f"{batch} samples: {value.item()}"
                    assert all(torch.isfinite(gradient).all() for gradient in _gradients(value, inputs).values())
            inputs = self.make_inputs(loss)
            for name, value in inputs.items():
                if isinstance(value, Tensor) and name.startswith("target"):
                    inputs[name] = torch.ones_like(value)
            value = _call(loss, inputs, "mean")
            assert torch.isfinite(value)
            assert all(torch.isfinite(gradient).all() for gradient in _gradients(value, inputs).values())

    def test_wrong_input_raises_an_error_that_names_it(self, loss: nn.Module) -> None:
        with self.trial(loss, "errors"):
            names = self.arguments(loss)
            inputs = self.make_inputs(loss)
            batched = [name for name, quantity in names.items() if quantity not in FIXED_SIZE]
            for name in batched[1:]:
                _assert_refused(loss, {**inputs, name: inputs[name][:-1]}, name)
                _assert_refused(loss, {**inputs, name: inputs[name].unsqueeze(-1)}, name)
            for name, quantity in names.items():
                if quantity == "output_weight":
                    _assert_refused(loss, {**inputs, name: inputs[name][:, :-1]}, name)
                if quantity in ("logits", "embeddings", "projections_1", "hidden_states"):
                    flat = {other: value[:, 0] if _is_leaf(value) and names[other] not in FIXED_SIZE else value for other, value in inputs.items()}
                    flat[name] = inputs[name].flatten()[: len(inputs[name])]
                    _assert_refused(loss, flat, name)
                if quantity == "target":
                    self._try_wrong_targets(loss, inputs, name)
                if quantity == "target_multi_hot":
                    _assert_refused(loss, {**inputs, name: inputs[name] + 0.5}, name)

    def test_inputs_are_not_changed(self, loss: nn.Module) -> None:
        inputs = self.make_inputs(loss)
        before = {name: value.detach().clone() for name, value in inputs.items() if isinstance(value, Tensor)}
        _gradients(_call(loss, inputs, "mean"), inputs)
        for name, value in before.items():
            assert torch.equal(inputs[name], value), f"{name} was changed in place"

    def test_compiled_gives_the_same(self, loss: nn.Module) -> None:
        with self.trial(loss, "compile"):
            inputs = self.make_inputs(loss)
            torch.compiler.reset()
            compiled = torch.compile(loss, backend=self.compile_backend)
            expected, value = copy.deepcopy(loss)(**inputs), compiled(**inputs)  # a loss with memory moves on with every call
            self.assert_close(value, expected)
            gradients = _gradients(expected, inputs)
            for name, gradient in _gradients(value, inputs).items():
                self.assert_close(gradient, gradients[name])

    def test_many_values_of_a_hyperparameter_at_once(self, loss: nn.Module) -> None:
        """``torch.func.vmap`` over each float hyperparameter gives what one value after the other gives."""
        with self.trial(loss, "vmap"):
            inputs = self.make_inputs(loss)
            for name in hyperparameters(loss):
                value = getattr(loss, name)
                values = torch.tensor([value, 0.9 * value + 0.01], dtype=torch.float64)
                one_by_one = torch.stack([_with_attribute(loss, name, float(v))(**inputs) for v in values])
                at_once = torch.func.vmap(lambda v, name=name: _with_attribute(loss, name, v)(**inputs))(values)
                self.assert_close(at_once, one_by_one)

    def test_never_waits_for_the_device(self, loss: nn.Module) -> None:
        """On the meta device tensors have no values: whatever reads one (``.item()``, ``if tensor:``) fails there."""
        with self.trial(loss, "no_host_sync"):
            inputs = {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in self.make_inputs(loss).items()}
            value = copy.deepcopy(loss).to("meta")(**inputs)
            assert value.device.type == "meta" and value.shape == ()

    def test_mixed_precision(self, loss: nn.Module) -> None:
        """Under bfloat16 autocast activations are half precision and parameters are not; the value is near the exact one."""
        with self.trial(loss, "autocast"):
            inputs = self.make_inputs(loss)
            exact = copy.deepcopy(loss)(**inputs).detach()
            for name, quantity in self.arguments(loss).items():
                if _is_leaf(inputs[name]):
                    inputs[name] = inputs[name].detach().to(torch.float32 if quantity in FIXED_SIZE else torch.bfloat16).requires_grad_()
                elif isinstance(inputs[name], Tensor) and inputs[name].is_floating_point():
                    inputs[name] = inputs[name].float()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = loss(**inputs)
            assert float(value.detach()) == pytest.approx(float(exact), rel=0.05, abs=0.02)
            assert all(torch.isfinite(gradient).all() for gradient in _gradients(value, inputs).values())

    def test_state_survives(self, loss: nn.Module) -> None:
        """A deep copy, a pickled copy and a fresh copy that loads the state dictionary give the same value."""
        inputs = self.make_inputs(loss)
        fresh = copy.deepcopy(loss)
        expected = loss(**inputs)  # a loss with memory has moved on by now
        for copied in (copy.deepcopy(loss), _through_a_file(loss)):
            fresh.load_state_dict(copied.state_dict(), strict=True)
            assert {k: v.shape for k, v in copied.state_dict().items()} == {k: v.shape for k, v in loss.state_dict().items()}
            assert torch.isfinite(expected)
            assert torch.equal(copied(**inputs), fresh(**inputs))

    def test_docstring_has_formula_shapes_and_source(self, loss: nn.Module) -> None:
        with self.trial(loss, "docstring"):
            text = type(loss).__doc__ or ""
            for part in (".. math::", "Args:", "Shapes:", "Raises:", "Source:"):
                assert part in text, f"the docstring of {type(loss).__name__} has no {part!r}"
            for name in _constructor(loss):
                assert f"{name}:" in text, f"the docstring of {type(loss).__name__} does not explain {name!r}"

    # -- what the trials share --------------------------------------------------------------------------------------------------
    def arguments(self, loss: nn.Module) -> dict[str, str]:
        """Required parameter of ``forward`` -> quantity."""
        return {name: self.quantities.get(name, name) for name in requirements(loss.forward)[0]}

    @contextlib.contextmanager
    def trial(self, loss: nn.Module, name: str) -> Iterator[None]:
        """Runs a trial; one declared exempt must fail."""
        exempt = {**getattr(loss, "exempt", {}), **self.exempt}
        assert set(exempt) <= TRIALS, f"there are no trials named {sorted(set(exempt) - TRIALS)}; there are {sorted(TRIALS)}"
        reason = exempt.get(name)
        if reason is None:
            yield
            return
        try:
            yield
        except (AssertionError, RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, pytest.fail.Exception):
            return
        pytest.fail(f"{type(loss).__name__} passes the trial {name!r} that it is exempt from ({reason}): remove the exception")

    def assert_close(self, got: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(got, expected, rtol=self.tolerance, atol=self.tolerance)

    def _spatial_shapes(self, loss: nn.Module) -> list[tuple[int, ...]]:
        """Losses of logits also take (N, C, d1, …), unless they say otherwise."""
        dense = "logits" in self.arguments(loss).values() and getattr(loss, "dense", True)
        return [(), (3,), (2, 3)] if dense else [()]

    def _select(self, loss: nn.Module, inputs: Mapping[str, Any], index: Tensor) -> dict[str, Any]:
        """The given samples of a batch, as new leaves."""
        names = self.arguments(loss)
        return {k: v if names[k] in FIXED_SIZE else _as_leaf(v.detach()[index], names[k]) for k, v in inputs.items()}

    def _ignored_marker(self, loss: nn.Module) -> tuple[str, float] | None:
        """The parameter that says what is ignored and the value that says it; None if the loss has no such thing."""
        by_quantity = {quantity: name for name, quantity in self.arguments(loss).items()}
        if "target_multi_hot" in by_quantity:
            return by_quantity["target_multi_hot"], math.nan
        if "target" not in by_quantity:
            return None
        if REAL_VALUED & set(by_quantity):
            return by_quantity["target"], math.nan
        return by_quantity["target"], getattr(loss, "ignore_index", IGNORE_INDEX)

    def _function_of_leaves(self, loss: nn.Module, reduction: str, batch: int) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        inputs = self.make_inputs(loss, batch=batch)
        names = [name for name, value in inputs.items() if _is_leaf(value)]
        return lambda *leaves: _call(loss, {**inputs, **dict(zip(names, leaves, strict=True))}, reduction), tuple(inputs[name] for name in names)

    def _try_wrong_targets(self, loss: nn.Module, inputs: Mapping[str, Any], name: str) -> None:
        target = inputs[name]
        if target.is_floating_point():
            _assert_refused(loss, {**inputs, name: target.long()}, name)
            return
        _assert_refused(loss, {**inputs, name: target.double()}, name)
        if {"logits", "output_weight"} & set(self.arguments(loss).values()):
            for outside in (CLASSES, -1):
                wrong = target.clone()
                wrong.view(-1)[1] = outside
                _assert_refused(loss, {**inputs, name: wrong}, name)


def hyperparameters(loss: nn.Module) -> list[str]:
    """Names of the constructor's parameters that the loss keeps as float attributes."""
    return [name for name in _constructor(loss) if type(getattr(loss, name, None)) is float]


def _constructor(loss: nn.Module) -> list[str]:
    return [name for name in inspect.signature(type(loss)).parameters if name not in ("args", "kwargs")]


def _call(loss: nn.Module, inputs: Mapping[str, Any], reduction: str) -> Tensor:
    """The loss under another reduction; the loss itself stays as it is."""
    value: Tensor = _with_attribute(loss, "reduction", reduction)(**inputs)
    return value


def _with_attribute(loss: nn.Module, name: str, value: Any) -> nn.Module:
    """A copy with an attribute or buffer replaced."""
    other = copy.deepcopy(loss)
    setattr(other, name, value)
    return other


def _gradients(value: Tensor, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Gradient of ``value`` with respect to every differentiable input; 0 for one that it does not depend on."""
    leaves = {name: leaf for name, leaf in inputs.items() if _is_leaf(leaf)}
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in zip(leaves.items(), gradients, strict=True)}


def _per_element(gradient: Tensor, shape: torch.Size) -> Tensor | None:
    """The size of the gradient at each element of the target: (N, C, d1, …) -> (N, d1, …), (N, T, D) -> (N, T); None if they do not correspond."""
    if gradient.shape == shape:
        return gradient
    if gradient.shape[:1] + gradient.shape[2:] == shape:
        return gradient.abs().sum(1)
    return gradient.abs().sum(-1) if gradient.shape[:-1] == shape else None


def _is_leaf(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _as_leaf(value: Any, quantity: str) -> Any:
    """A tensor that a model would have computed gets ``requires_grad``; data and the teacher's outputs do not."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or quantity.startswith(DATA):
        return value
    return value.detach().clone().requires_grad_()


def _assert_refused(loss: nn.Module, inputs: Mapping[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        loss(**inputs)


def _through_a_file(loss: nn.Module) -> nn.Module:
    """The module after pickling, as ``torch.save`` of a whole module does it."""
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded
