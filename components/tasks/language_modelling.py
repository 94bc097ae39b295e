"""Language modelling: predict the next token, or the next byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from components.data.base import Batch
from components.losses.base import IGNORE_INDEX
from components.quantities import Quantities, lazy
from components.tasks.base import Task
from components.validation import require

CHUNK_ELEMENTS = 1 << 24  # logits in memory at once when they are wanted for nothing but the likelihood


class LanguageModellingTask(Task):
    r"""Predict each next token.

    Beside the loss, ``perplexity`` and ``bits_per_byte`` are logged. Both come from the mean negative log-likelihood a token, in
    nats, which is computed for itself: they do not depend on the loss that training minimises.

    .. math:: \text{perplexity} = e^{\text{nll}}, \qquad \text{bits per byte} = \frac{\text{nll}}{\ln 2 \cdot \text{bytes per token}}

    Logits are computed when something asks for them. A loss on ``hidden_states`` and ``output_weight``, such as
    ``linear_cross_entropy``, never has them in memory; that needs a model with ``hidden(inputs)``, ``head(hidden)`` and ``output_weight``.

    Args:
        bytes_per_token: mean bytes of a token of the data; 1 where tokens are bytes.

    Shapes:
        inputs and target (N, T) tokens, long, target shifted by one and :data:`~components.losses.IGNORE_INDEX` where there is
        none; logits (N, V, T); hidden_states and features (N, T, D); output_weight (V, D).
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target", "logits", "hidden_states", "output_weight", "features"})
    dense = True
    own_metrics: ClassVar[dict[str, bool]] = {"perplexity": False, "bits_per_byte": False}

    def __init__(self, *args: Any, bytes_per_token: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require(bytes_per_token > 0, "bytes_per_token must be > 0", bytes_per_token)
        self.bytes_per_token = bytes_per_token
        self.gives_hidden = all(hasattr(self.model, name) for name in ("hidden", "head", "output_weight"))
        self._hidden: Any = self.model.hidden if self.gives_hidden else None
        self._nll: list[Tensor] = []  # (sum, tokens) of each batch

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        return {"num_outputs": data["vocab_size"]}

    @property
    def offered(self) -> frozenset[str]:
        return super().offered if self.gives_hidden else super().offered - {"hidden_states", "output_weight"}

    @cached_property
    def without_logits(self) -> bool:
        """Whether logits are left out until they are asked for: only where a component works on the hidden states instead."""
        return self.gives_hidden and "output_weight" in self.asked()

    def quantities(self, batch: Batch) -> Quantities:
        model: Any = self.model
        if not self.without_logits:
            logits, hidden = self.run_model(batch["inputs"])
            more = {"hidden_states": hidden, "output_weight": model.output_weight} if self.gives_hidden else {}
            return self.common(batch, logits=logits, features=hidden, **more)
        hidden = self._hidden(batch["inputs"])
        logits_on_demand = lazy(lambda q: model.head(q["hidden_states"]).transpose(1, 2))
        return self.common(batch, logits=logits_on_demand, hidden_states=hidden, features=hidden, output_weight=model.output_weight)

    def compile_model(self) -> None:
        super().compile_model()
        if self.without_logits:  # a step then runs a part of the model, past its forward
            self._hidden = torch.compile(cast(Any, self.model).hidden)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``next_token`` (N,) after the last input and its ``probability``; with targets in the batch also ``nll`` (N,), nats a token."""
        logits = self.run_model(batch["inputs"]).output
        probability, token = logits[:, :, -1].softmax(1).max(1)
        columns = {"next_token": token, "probability": probability}
        if "target" in batch:
            values = cross_entropy(logits.float(), batch["target"], ignore_index=IGNORE_INDEX, reduction="none")
            columns["nll"] = values.sum(1) / (batch["target"] != IGNORE_INDEX).sum(1).clamp(min=1)
        return columns

    # -- validation -----------------------------------------------------------------------------------------------------
    def evaluate_more(self, stage: str, quantities: Quantities) -> None:
        target = quantities["target"]
        total = self.chunked_nll(quantities) if self.without_logits else token_nll(quantities["logits"], target)
        self._nll.append(torch.stack([total.float(), (target != IGNORE_INDEX).sum().float()]))

    @torch.no_grad()
    def chunked_nll(self, quantities: Quantities) -> Tensor:
        """The summed negative log-likelihood from the hidden states, a part of the logits at a time."""
        hidden, weight = quantities["hidden_states"].flatten(0, 1), quantities["output_weight"]
        target, size = quantities["target"].flatten(), max(1, CHUNK_ELEMENTS // len(weight))
        return torch.stack([token_nll(linear(h, weight), t) for h, t in zip(hidden.split(size), target.split(size), strict=True)]).sum()

    def evaluation(self, stage: str) -> dict[str, float]:
        values = super().evaluation(stage)
        sums = torch.stack(self._nll).cpu().double().sum(0) if self._nll else torch.zeros(2, dtype=torch.float64)
        self._nll = []
        total, tokens = (self._over_ranks(sums) * self.trainer.world_size).tolist()
        if tokens:
            nll = total / tokens
            values |= {f"{stage}/perplexity": math.exp(min(nll, 700.0)), f"{stage}/bits_per_byte": nll / math.log(2) / self.bytes_per_token}
        return values


def token_nll(logits: Tensor, target: Tensor) -> Tensor:
    """The summed negative log-likelihood in nats of ``target`` under ``logits`` (N, V) or (N, V, T)."""
    return cross_entropy(logits.float(), target, ignore_index=IGNORE_INDEX, reduction="sum")
