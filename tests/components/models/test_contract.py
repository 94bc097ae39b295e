"""Every option of conf/model goes through the same trials, each on the kind of data that it is for."""

from __future__ import annotations

import copy
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from components.models.base import ModelOutput
from components.quantities import FACTS

OPTIONS = Path(__file__).parents[3] / "conf" / "model"
HUB = {"timm", "huggingface"}  # need packages that are not always there: test_hub.py
NAMES = sorted(path.stem for path in OPTIONS.glob("*.yaml") if path.stem not in HUB)

IMAGE = {"in_channels": 3, "image_size": (12, 12), "input_shape": (3, 12, 12), "num_outputs": 5, "num_classes": 5}
TABLE = {"num_features": 7, "input_shape": (7,), "num_outputs": 3, "num_classes": 3}
SERIES = {"in_channels": 2, "history_length": 24, "horizon": 6, "input_shape": (24, 2), "num_outputs": 4, "num_targets": 2, "head": "gaussian"}
TEXT = {"vocab_size": 11, "sequence_length": 16, "input_shape": (16,), "num_outputs": 11, "num_classes": 11}
POINTS = {"num_features": 2, "input_shape": (2,), "num_outputs": 2}
DENSITY = {"num_features": 2, "input_shape": (2,), "num_outputs": 1}
MATRIX = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)).div(8**0.5).tolist()
MEASURED = {"input_shape": (8,), "num_outputs": 12, "measurement_matrix": MATRIX}
ITEMS = {"input_shape": (12,), "num_features": 12, "num_outputs": 3, "num_classes": 3}
FACTS_OF = {
    "linear": TABLE,
    "mlp": TABLE,
    "convnet": IMAGE,
    "resnet": IMAGE,
    "unet": IMAGE,
    "probabilistic_unet": IMAGE,
    "transformer_lm": TEXT,
    "dlinear": SERIES,
    "patch_transformer": SERIES,
    "xpatch": SERIES,
    "coordinate_mlp": POINTS,
    "gaussian_energy": DENSITY,
    "mixture_of_experts": TABLE,
    "gef_mixture": POINTS,
    "unfolded_ista": MEASURED,
    "unfolded_iht": MEASURED,
    "two_tower": TABLE,
    "scorer": ITEMS,
    "fcn": TABLE,
}
OUTPUT_SHAPE = {
    "linear": (3,),
    "mlp": (3,),
    "convnet": (5,),
    "resnet": (5,),
    "unet": (5, 12, 12),
    "probabilistic_unet": (5, 12, 12),
    "transformer_lm": (11, 16),
    "dlinear": (6, 4),
    "patch_transformer": (6, 4),
    "xpatch": (6, 4),
    "coordinate_mlp": (2,),
    "gaussian_energy": (1,),
    "mixture_of_experts": (3,),
    "gef_mixture": (2,),
    "unfolded_ista": (12,),
    "unfolded_iht": (12,),
    "two_tower": (3,),
    "scorer": (3,),
    "fcn": (2,),
}
BATCH = 6
FIXED_START = {"unfolded_ista", "unfolded_iht"}  # they start as the algorithm that they unfold; the trials move them a little at random
UNUSED = {"probabilistic_unet": "posterior_net."}  # parameters that a task calls, not forward


def build(name: str, facts: dict[str, Any] | None = None, seed: int = 0, **options: Any) -> nn.Module:
    """The model of an option file, facts filled in by name."""
    node = yaml.safe_load((OPTIONS / f"{name}.yaml").read_text())
    module, _, class_name = node.pop("_target_").rpartition(".")
    model_class = getattr(importlib.import_module(module), class_name)
    facts = FACTS_OF[name] if facts is None else facts
    taken = {k: v for k, v in facts.items() if k in inspect.signature(model_class).parameters}
    torch.manual_seed(seed)
    model = model_class(**taken, **{**node, **options})
    if name in FIXED_START:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def batch(name: str, size: int = BATCH, seed: int = 1) -> Tensor:
    facts = FACTS_OF[name]
    generator = torch.Generator().manual_seed(seed)
    if "vocab_size" in facts:
        return torch.randint(facts["vocab_size"], (size, *facts["input_shape"]), generator=generator)
    return torch.randn(size, *facts["input_shape"], generator=generator)


def used_parameters(name: str, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(key, parameter) for key, parameter in model.named_parameters() if not key.startswith(UNUSED.get(name, "-"))]


def test_every_option_has_its_facts_here():
    assert set(NAMES) == set(FACTS_OF)
    for facts in FACTS_OF.values():
        assert set(facts) <= set(FACTS)


@pytest.mark.parametrize("name", sorted([*NAMES, *HUB]))
class TestOptionFile:
    def test_first_line_describes(self, name):
        first = (OPTIONS / f"{name}.yaml").read_text().splitlines()[0]
        assert first.startswith("# ") and "(" in first and first.endswith(")")

    def test_lists_every_option_with_its_default(self, name):
        node = yaml.safe_load((OPTIONS / f"{name}.yaml").read_text())
        module, _, class_name = node.pop("_target_").rpartition(".")
        assert module == "components.models"
        parameters = inspect.signature(getattr(importlib.import_module(module), class_name)).parameters
        options = {k: p.default for k, p in parameters.items() if k not in FACTS}
        assert set(node) == set(options)
        for key, default in options.items():
            if default is not inspect.Parameter.empty and name not in HUB:
                assert node[key] == (list(default) if isinstance(default, tuple) else default), key

    def test_facts_are_named_in_the_vocabulary(self, name):
        node = yaml.safe_load((OPTIONS / f"{name}.yaml").read_text())
        module, _, class_name = node.pop("_target_").rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), class_name)).parameters
        assert set(parameters) - set(node) <= set(FACTS)

    def test_docstring_names_its_source(self, name):
        node = yaml.safe_load((OPTIONS / f"{name}.yaml").read_text())
        module, _, class_name = node["_target_"].rpartition(".")
        doc = inspect.getdoc(getattr(importlib.import_module(module), class_name)) or ""
        assert all(section in doc for section in ("Args:", "Shapes:", "Raises:", "Source:"))


@pytest.mark.parametrize("name", NAMES)
class TestModelContract:
    def test_output_and_features(self, name):
        model = build(name)
        result = model(batch(name))
        assert isinstance(result, ModelOutput)
        assert result.output.shape == (BATCH, *OUTPUT_SHAPE[name])
        assert isinstance(model.feature_dim, int)
        assert result.features is not None
        assert result.features.shape[0] == BATCH and result.features.shape[-1] == model.feature_dim
        assert result.features.ndim == (3 if name == "transformer_lm" else 2)
        assert result.output.isfinite().all() and result.features.isfinite().all()

    def test_gradient_reaches_every_parameter(self, name):
        model = build(name)
        output = model(batch(name)).output
        (output * torch.randn_like(output)).sum().backward()
        for key, parameter in used_parameters(name, model):
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, key

    def test_same_seed_same_weights(self, name):
        first, again, other = build(name), build(name), build(name, seed=1)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))

    def test_state_dict_round_trip(self, name):
        model, other = build(name).eval(), build(name, seed=1).eval()
        inputs = batch(name)
        assert not torch.equal(model(inputs).output, other(inputs).output)
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        assert torch.equal(model(inputs).output, other(inputs).output)

    def test_evaluation_is_deterministic_and_leaves_the_model_alone(self, name):
        model = build(name).eval()
        inputs = batch(name)
        before, kept = copy.deepcopy(model.state_dict()), inputs.clone()
        first, second = model(inputs), model(inputs)
        assert torch.equal(first.output, second.output) and torch.equal(first.features, second.features)
        assert torch.equal(inputs, kept)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_batch_permutation(self, name):
        model = build(name).eval()
        inputs = batch(name)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        straight, permuted = model(inputs), model(inputs[order])
        torch.testing.assert_close(permuted.output, straight.output[order], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(permuted.features, straight.features[order], atol=1e-5, rtol=1e-5)

    def test_a_sample_alone_is_the_same(self, name):
        model = build(name).eval()
        inputs = batch(name)
        torch.testing.assert_close(model(inputs[:1]).output, model(inputs).output[:1], atol=1e-5, rtol=1e-5)

    def test_training_does_not_change_its_inputs(self, name):
        model, inputs = build(name).train(), batch(name)
        kept = inputs.clone()
        model(inputs).output.square().mean().backward()
        assert torch.equal(inputs, kept)

    def test_bf16_autocast(self, name):
        model, inputs = build(name), batch(name)
        exact = model.eval()(inputs).output.detach()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(inputs).output
        assert output.isfinite().all()
        torch.testing.assert_close(output.float(), exact, atol=0.1 * float(exact.abs().max()), rtol=0.1)
        output.float().square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for _, p in used_parameters(name, model))

    def test_double_precision(self, name):
        model, inputs = build(name).double().eval(), batch(name)
        inputs = inputs if not inputs.is_floating_point() else inputs.double()
        exact = build(name).eval()(batch(name)).output
        assert model(inputs).output.dtype == torch.float64
        torch.testing.assert_close(model(inputs).output, exact.double(), atol=1e-4, rtol=1e-4)

    def test_compiles_whole(self, name):
        """``torch.compile`` captures the forward and the backward pass in one graph each."""
        torch._dynamo.reset()
        model, inputs = build(name).eval(), batch(name)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        expected, output = model(inputs).output, compiled(inputs).output
        torch.testing.assert_close(output, expected)
        used = [parameter for _, parameter in used_parameters(name, model)]
        wanted = torch.autograd.grad(expected.square().mean(), used)
        torch.testing.assert_close(torch.autograd.grad(output.square().mean(), used), wanted)

    def test_learns(self, name):
        """Ten steps on one batch lower the loss: weights start where gradients are of use."""
        model, inputs = build(name), batch(name)
        output = model(inputs).output
        goal = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = (model(inputs).output - goal).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        enough = 0.97 if len(torch.nn.utils.parameters_to_vector(model.parameters())) > 20 else 0.999  # a few numbers can't learn just any goal
        assert losses[-1] < enough * losses[0]

    @pytest.mark.parametrize("wrong", ["dimensions", "size", "dtype"])
    def test_wrong_inputs_are_named(self, name, wrong):
        model, inputs = build(name), batch(name)
        if wrong == "dimensions":
            inputs = inputs[..., None, None]
        elif wrong == "dtype":
            inputs = inputs.float() if not inputs.is_floating_point() else inputs.long()
        else:
            inputs = torch.cat([inputs, inputs], 1)  # channels of an image, columns of a table, steps of a series, tokens
        with pytest.raises(ValueError, match=f"model={name} takes .* but got"):
            model(inputs)


@pytest.mark.parametrize("name", ["linear", "mlp"])
@pytest.mark.parametrize("shape", [(7,), (1, 8, 8), (24, 2)])
def test_dense_models_flatten_any_input(name, shape):
    model = build(name, {"input_shape": list(shape), "num_outputs": 4})
    assert model(torch.randn(3, *shape)).output.shape == (3, 4)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_dense_models_forecast(name):
    model = build(name, {"input_shape": (24, 2), "num_outputs": 4, "horizon": 6})
    assert model(torch.randn(3, 24, 2)).output.shape == (3, 6, 4)


@pytest.mark.parametrize("name", ["convnet", "resnet", "unet", "probabilistic_unet"])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1), (32, 20), (64, 64)])
def test_image_models_take_any_size(name, size):
    model = build(name, {"in_channels": 1, "num_outputs": 2}).eval()
    result = model(torch.randn(2, 1, *size))
    assert result.output.shape == ((2, 2, *size) if name.endswith("unet") else (2, 2))
    assert result.features.shape == (2, model.feature_dim)
    assert result.output.isfinite().all()


@pytest.mark.parametrize("name", ["convnet", "resnet", "unet", "probabilistic_unet"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_norms(name, norm):
    model = build(name, norm=norm)
    kinds = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm}
    for kind, layer in kinds.items():
        assert any(isinstance(m, layer) for m in model.modules()) == (kind == norm)
    result = model(batch(name))
    result.output.square().mean().backward()
    assert all(p.grad is not None for _, p in used_parameters(name, model))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("mlp", {"hidden": []}, "hidden"),
        ("mlp", {"hidden": [0]}, "hidden"),
        ("mlp", {"activation": "rellu"}, "did you mean 'relu'"),
        ("mlp", {"norm": "group"}, "norm must be one of"),
        ("mlp", {"dropout": 1.0}, "dropout"),
        ("convnet", {"channels": []}, "channels"),
        ("convnet", {"norm": "instance"}, "norm must be one of"),
        ("convnet", {"dropout": -0.1}, "dropout"),
        ("resnet", {"depth": 18}, "6n"),
        ("resnet", {"depth": 2}, "6n"),
        ("resnet", {"width": 0}, "width"),
        ("unet", {"depth": 0}, "depth"),
        ("unet", {"width": 0}, "width"),
        ("probabilistic_unet", {"latent_dim": 0}, "latent_dim"),
        ("probabilistic_unet", {"norm": "layer"}, "norm"),
        ("transformer_lm", {"width": 100}, "width must be a multiple of"),
        ("transformer_lm", {"num_heads": 0}, "num_heads"),
        ("transformer_lm", {"depth": 0}, "depth"),
        ("transformer_lm", {"dropout": 1.5}, "dropout"),
        ("transformer_lm", {"rope_base": 1.0}, "rope_base"),
        ("transformer_lm", {"mlp_ratio": 0.0}, "mlp_ratio"),
        ("dlinear", {"kernel_size": 24}, "odd"),
        ("patch_transformer", {"patch_length": 25}, "patch_length"),
        ("patch_transformer", {"stride": 0}, "stride"),
        ("patch_transformer", {"num_heads": 5}, "width must be a multiple of"),
        ("two_tower", {"width": 0}, "width must be"),
        ("two_tower", {"hidden": [0]}, "hidden"),
        ("two_tower", {"similarity": "cosin"}, "did you mean 'cosine'"),
        ("two_tower", {"temperature": 0.0}, "temperature must be > 0"),
        ("two_tower", {"shared": True}, "shared=true needs data whose candidates have features"),
        ("scorer", {"hidden": [0]}, "hidden must hold"),
        ("fcn", {"width": 7}, "width must be even"),
        ("fcn", {"layers": 0}, "layers must be >= 1"),
        ("fcn", {"branches": []}, "branches must name"),
        ("fcn", {"branches": ["linaer"]}, "did you mean 'linear'"),
        ("fcn", {"gate": "mask"}, "gate must be one of"),
        ("patch_transformer", {"revin": False, "revin_affine": True}, "revin_affine"),
    ],
)
def test_wrong_options_are_named(name, options, says):
    with pytest.raises(ValueError, match=says):
        build(name, **options)


SIZES = ("in_channels", "num_outputs", "vocab_size", "sequence_length", "history_length", "horizon")


@pytest.mark.parametrize(
    ("name", "fact"),
    [(name, fact) for name in NAMES for fact in SIZES if fact in FACTS_OF[name] and fact in inspect.signature(type(build(name)).__init__).parameters],
)
def test_impossible_facts_are_named(name, fact):
    with pytest.raises(ValueError, match=fact):
        build(name, {**FACTS_OF[name], fact: 0})
