"""timm through a stand-in (it needs torchvision, which is not always there), transformers for real with tiny models saved to a folder."""

from __future__ import annotations

import importlib.abc
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from components.models import HuggingFaceModel, TimmModel


class FakeBackbone(nn.Module):
    """What a timm model made with ``num_classes=0`` does: pictures to pooled features."""

    def __init__(self, in_chans: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_features = 6
        self.conv = nn.Conv2d(in_chans, 6, 3, padding=1)
        self.drop_rate = drop_rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


class FakeBackboneWithHiddenHead(FakeBackbone):
    """Like MobileNetV3: a further layer between the maps and the classifier."""

    def __init__(self, in_chans: int) -> None:
        super().__init__(in_chans)
        self.head_hidden_size = 9
        self.conv_head = nn.Linear(6, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_head(super().forward(x))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A module called timm with two models; the list holds the arguments of each ``create_model``."""
    calls: list[dict[str, Any]] = []
    models = {"resnet18": FakeBackbone, "mobilenetv3_small_050": FakeBackboneWithHiddenHead}

    def create_model(name: str, *, pretrained: bool, in_chans: int, num_classes: int, **options: Any) -> nn.Module:
        calls.append({"name": name, "pretrained": pretrained, "in_chans": in_chans, "num_classes": num_classes, **options})
        if name not in models:
            raise RuntimeError(f"Unknown model ({name})")
        return models[name](in_chans, **options)

    module = types.ModuleType("timm")
    module.create_model = create_model  # type: ignore[attr-defined]
    module.list_models = lambda pattern: [n for n in models if n.startswith(pattern.strip("*"))]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)
    return calls


class Missing(importlib.abc.MetaPathFinder):
    """Makes a package look as if it were not installed."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in ("timm", "transformers"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing("timm", "transformers"), *sys.meta_path])


class TestTimm:
    def test_builds_by_name(self, timm):
        model = TimmModel("resnet18", 4, 1, options={"drop_rate": 0.1})
        assert timm == [{"name": "resnet18", "pretrained": False, "in_chans": 1, "num_classes": 0, "drop_rate": 0.1}]
        result = model(torch.randn(3, 1, 8, 8))
        assert result.output.shape == (3, 4) and result.features.shape == (3, model.feature_dim) == (3, 6)
        assert torch.equal(result.output, model.head(result.features))

    def test_features_after_a_hidden_head(self, timm):
        model = TimmModel("mobilenetv3_small_050", 4, 3, pretrained=True)
        assert timm[0]["pretrained"] is True
        assert model(torch.randn(3, 3, 8, 8)).features.shape == (3, 9) == (3, model.feature_dim)

    def test_gradient_reaches_every_parameter(self, timm):
        model = TimmModel("mobilenetv3_small_050", 4, 3)
        (model(torch.randn(3, 3, 8, 8)).output * torch.randn(3, 4)).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

    def test_unknown_name(self, timm):
        with pytest.raises(ValueError, match="timm has no model 'resnet_18'; near it: resnet18"):
            TimmModel("resnet_18", 4)

    def test_wrong_inputs(self, timm):
        with pytest.raises(ValueError, match=r"model=timm takes images \(N, 1, H, W\)"):
            TimmModel("resnet18", 4, 1)(torch.randn(3, 13))


@pytest.mark.parametrize("build", [lambda: TimmModel("resnet18", 4), lambda: HuggingFaceModel("bert", 4)])
def test_not_installed(missing, build):
    with pytest.raises(ValueError, match=r"model=(timm|huggingface) needs (timm|transformers), which is not installed: pip install losskit\[hub\]"):
        build()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny models of four architectures, saved as ``save_pretrained`` saves them: kind -> folder."""
    import transformers

    text = {"vocab_size": 20, "pad_token_id": 0}
    configs = {
        "vit": transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4, num_channels=1
        ),
        "resnet": transformers.ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
        "bert": transformers.BertConfig(**text, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16),
        "distilbert": transformers.DistilBertConfig(**text, dim=16, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=16),
        "gpt2": transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16),
    }
    saved: dict[str, str] = {}
    for name, config in configs.items():
        torch.manual_seed(0)
        loader = transformers.AutoModelForCausalLM if name == "gpt2" else transformers.AutoModel
        folder = tmp_path_factory.mktemp(name)
        loader.from_config(config).save_pretrained(folder)
        saved[name] = str(folder)
    return saved


CASES = [("vit", "image", 16), ("resnet", "image", 12), ("bert", "text", 16), ("distilbert", "text", 16), ("gpt2", "language_modelling", 16)]


def inputs_of(kind: str) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 1, 8, 8) if kind == "image" else torch.randint(1, 20, (3, 7))


@pytest.mark.parametrize(("name", "kind", "size"), CASES)
class TestHuggingFace:
    def test_output_and_features(self, folders, name, kind, size):
        model = HuggingFaceModel(folders[name], 5, kind=kind).eval()
        output, features = model(inputs_of(kind))
        assert model.feature_dim == size and features.shape[-1] == size
        assert output.shape == ((3, 20, 7) if kind == "language_modelling" else (3, 5))
        assert features.shape == ((3, 7, size) if kind == "language_modelling" else (3, size))

    def test_pretrained_takes_the_weights(self, folders, name, kind, size):
        torch.manual_seed(5)
        first = HuggingFaceModel(folders[name], 5, kind=kind, pretrained=True)
        torch.manual_seed(6)
        second = HuggingFaceModel(folders[name], 5, kind=kind, pretrained=True)
        fresh = HuggingFaceModel(folders[name], 5, kind=kind)
        inputs = inputs_of(kind)
        assert first.training and all(m.training for m in first.modules())
        assert torch.equal(first.eval()(inputs).features, second.eval()(inputs).features)
        assert not torch.allclose(first(inputs).features, fresh.eval()(inputs).features)

    def test_gradient_reaches_every_parameter(self, folders, name, kind, size):
        """DistributedDataParallel stops at a parameter that has none."""
        model = HuggingFaceModel(folders[name], 5, kind=kind)
        output = model(inputs_of(kind)).output
        (output * torch.randn_like(output)).sum().backward()
        assert [key for key, p in model.named_parameters() if p.grad is None] == []

    def test_wrong_inputs(self, folders, name, kind, size):
        model = HuggingFaceModel(folders[name], 5, kind=kind)
        with pytest.raises(ValueError, match="model=huggingface takes"):
            model(torch.randn(3, 13))


def test_language_model_gives_hidden_states_and_output_weight(folders):
    model = HuggingFaceModel(folders["gpt2"], 20, kind="language_modelling", pretrained=True).eval()
    inputs = inputs_of("text")
    hidden = model.hidden(inputs)
    torch.testing.assert_close(torch.einsum("ntd,vd->nvt", hidden, model.output_weight), model(inputs).output)
    torch.testing.assert_close(model.backbone(input_ids=inputs).logits.transpose(1, 2), model(inputs).output)


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_padding_does_not_change_a_text(folders, name):
    model = HuggingFaceModel(folders[name], 5, kind="text", pretrained=True).eval()
    inputs = inputs_of("text")
    padded = torch.cat([inputs, torch.zeros(3, 4, dtype=torch.long)], 1)
    torch.testing.assert_close(model(padded).output, model(inputs).output, atol=1e-5, rtol=1e-4)
    unmasked = HuggingFaceModel(folders[name], 5, kind="text", pretrained=True, pad_token_id=19).eval()
    assert not torch.allclose(unmasked(padded).features, unmasked(inputs).features)


def test_options_override_the_configuration(folders):
    model = HuggingFaceModel(folders["bert"], 5, kind="text", options={"num_hidden_layers": 3})
    assert len(model.backbone.encoder.layer) == 3


def test_what_is_not_there(tmp_path: Path):
    with pytest.raises(ValueError, match="model=huggingface can't load"):
        HuggingFaceModel(str(tmp_path / "nothing"), 5)


def test_logits_changed_afterwards_are_refused(tmp_path: Path):
    """A loss on hidden states and output weight would compute other logits than the model."""
    import transformers

    config = transformers.CohereConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, logit_scale=0.0625
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="logit_scale"):
        HuggingFaceModel(str(tmp_path), 20, kind="language_modelling")


def test_more_outputs_than_tokens(folders):
    with pytest.raises(ValueError, match="num_outputs must be at most the 20 tokens"):
        HuggingFaceModel(folders["gpt2"], 21, kind="language_modelling")


def test_unknown_kind(folders):
    with pytest.raises(ValueError, match="kind must be one of image, text, language_modelling"):
        HuggingFaceModel(folders["bert"], 5, kind="audio")
