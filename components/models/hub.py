"""Models of timm and of Hugging Face's transformers by name (``pip install losskit[hub]``)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from components.models.base import ModelOutput
from components.models.layers import check_inputs
from components.validation import require, require_choice


class TimmModel(nn.Module):
    """Any image model of timm, with a linear layer on its pooled features.

    Args:
        name: timm's name, e.g. ``resnet18`` or ``vit_tiny_patch16_224``.
        num_outputs: outputs.
        in_channels: channels of the picture; timm adapts pretrained weights to it.
        pretrained: load timm's weights (from the network, or its cache).
        options: further arguments of ``timm.create_model``, e.g. ``{img_size: 32, drop_rate: 0.1}``.

    Shapes:
        inputs (N, in_channels, H, W), floating point; output (N, num_outputs); features (N, D), D the model's own.

    Raises:
        ValueError: if timm is not installed or has no model of this name, or the inputs are no pictures of ``in_channels`` channels.

    Source:
        Wightman, "PyTorch Image Models", 2019, https://github.com/huggingface/pytorch-image-models.
    """

    def __init__(self, name: str, num_outputs: int, in_channels: int = 3, *, pretrained: bool = False, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        require(num_outputs >= 1, "num_outputs must be >= 1", num_outputs)
        require(in_channels >= 1, "in_channels must be >= 1", in_channels)
        timm = import_extra("timm", "model=timm")
        try:
            self.backbone = timm.create_model(name, pretrained=pretrained, in_chans=in_channels, num_classes=0, **dict(options or {}))
        except RuntimeError as error:
            if "Unknown model" not in str(error):
                raise
            near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8])
            raise ValueError(f"timm has no model {name!r}" + (f"; near it: {near}" if near else "")) from error
        self.in_channels = in_channels
        # head_hidden_size: what is pooled, where the model has a further layer between its maps (num_features) and its classifier
        self.feature_dim = int(getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features)
        self.head = nn.Linear(self.feature_dim, num_outputs)

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "timm", "images", (self.in_channels, "H", "W"))
        features = self.backbone(inputs)
        return ModelOutput(self.head(features), features)


class HuggingFaceModel(nn.Module):
    """Any model of transformers: a linear layer on its pooled features, or a causal language model.

    Args:
        name: name on the Hugging Face hub, or a folder that ``save_pretrained`` wrote.
        num_outputs: outputs; a language model's are the tokens of its own vocabulary.
        kind: ``image`` (inputs are pictures), ``text`` (token indices, one output vector a text) or ``language_modelling``
            (token indices, one a token).
        pretrained: load the weights; otherwise only the architecture, with new weights.
        pad_token_id: this token is masked out of texts; default: the model's own, if it has one.
        options: overrides of the model's configuration, e.g. ``{num_hidden_layers: 2}``.

    Shapes:
        inputs (N, C, H, W) floating point, or (N, T) long; output (N, num_outputs), or (N, V, T) for ``language_modelling``; features
        (N, D): the model's own pooled output or, without one, the mean over positions; (N, T, D) for ``language_modelling``.

    Raises:
        ValueError: if transformers is not installed, the model can't be found, an option is out of its range or inputs don't fit ``kind``.

    Source:
        Wolf et al., "Transformers: State-of-the-Art Natural Language Processing", EMNLP 2020, arXiv:1910.03771.
    """

    def __init__(
        self,
        name: str,
        num_outputs: int,
        *,
        kind: str = "image",
        pretrained: bool = False,
        pad_token_id: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        require_choice("kind", kind, ("image", "text", "language_modelling"))
        require(num_outputs >= 1, "num_outputs must be >= 1", num_outputs)
        transformers = import_extra("transformers", "model=huggingface")
        loader = transformers.AutoModelForCausalLM if kind == "language_modelling" else transformers.AutoModel
        try:
            config = transformers.AutoConfig.from_pretrained(name, **dict(options or {}))
            model = loader.from_pretrained(name, config=config) if pretrained else loader.from_config(config)
        except OSError as error:
            raise ValueError(f"model=huggingface can't load {name!r}: {error}") from error
        self.backbone: Any = model.train()  # from_pretrained leaves it in evaluation mode
        self.kind = kind
        self.pad_token_id = getattr(config, "pad_token_id", None) if pad_token_id is None else pad_token_id
        self.feature_dim = hidden_size(config)
        if kind == "language_modelling":
            # a loss on hidden states and output weight computes plain logits
            changed = [n for n in ("final_logit_softcapping", "logit_scale", "logits_scaling") if getattr(config, n, None) not in (None, 1, 1.0)]
            require(not changed, f"{name} changes its logits after the output layer ({', '.join(changed)}), which kind='language_modelling' can't do")
            vocabulary = len(self.output_weight)
            require(num_outputs <= vocabulary, f"num_outputs must be at most the {vocabulary} tokens of {name}", num_outputs)
        else:
            self.head_layer = nn.Linear(self.feature_dim, num_outputs)

    @property
    def output_weight(self) -> Tensor:
        """(V, D) the language model's output weight."""
        return self.backbone.get_output_embeddings().weight

    def hidden(self, inputs: Tensor) -> Tensor:
        """(N, T, D) the language model's hidden states before the output layer, for token indices (N, T)."""
        check_inputs(inputs, "huggingface", "token indices", ("T",), tokens=True)
        return self.backbone.base_model(input_ids=inputs).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """(…, V) the logits of hidden states (…, D)."""
        return linear(hidden, self.output_weight)

    def forward(self, inputs: Tensor) -> ModelOutput:
        if self.kind == "language_modelling":
            hidden = self.hidden(inputs)
            return ModelOutput(self.head(hidden).transpose(1, 2), hidden)
        if self.kind == "image":
            check_inputs(inputs, "huggingface", "images", ("C", "H", "W"))
            features = pooled(self.backbone(pixel_values=inputs), None)
        else:
            check_inputs(inputs, "huggingface", "token indices", ("T",), tokens=True)
            mask = torch.ones_like(inputs) if self.pad_token_id is None else (inputs != self.pad_token_id).long()
            features = pooled(self.backbone(input_ids=inputs, attention_mask=mask), mask)
        return ModelOutput(self.head_layer(features), features)


def pooled(result: Any, mask: Tensor | None) -> Tensor:
    """(N, D): the model's pooled output or, without one, the mean over positions, those of ``mask`` (N, T) where it is given."""
    own = getattr(result, "pooler_output", None)
    if own is not None:
        return own.flatten(1)
    states = result.last_hidden_state
    if states.ndim == 4:
        return states.mean((2, 3))
    if mask is None:
        return states.mean(1)
    weights = mask.to(states.dtype).unsqueeze(2)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def hidden_size(config: Any) -> int:
    """Size of the states of a transformers model; the last stage's where there are several."""
    for name in ("hidden_size", "hidden_dim", "n_embd", "d_model", "dim"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    sizes: list[int] = getattr(config, "hidden_sizes", None) or getattr(config, "embed_dims", None) or []
    require(len(sizes) > 0, f"the size of the features of a {type(config).__name__} is unknown to losskit")
    return int(sizes[-1])


def import_extra(package: str, what: str) -> Any:
    """The imported package, or an error that says how to get it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] not in {package, "torchvision"}:
            raise
        raise ValueError(f"{what} needs {error.name}, which is not installed: pip install losskit[hub]") from error
