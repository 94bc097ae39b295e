"""Language modelling: cross-entropy over a vocabulary, token by token.

``target`` holds the token that follows each position: the task shifts, the losses do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32, check_class_indices, check_target, nonzero
from components.losses.classification import CrossEntropyLoss
from components.validation import require, require_choice


class NextTokenCrossEntropyLoss(CrossEntropyLoss):
    r"""Cross-entropy of the next token, with an optional penalty on the softmax's normaliser.

    .. math:: \ell = -w_y \log p_y + w_y\, \zeta\, \Big( \log \sum_v e^{z_v} \Big)^2

    The *z-loss* keeps scores from drifting away together, which bfloat16 rounds off.

    Args:
        z_loss: :math:`\zeta` >= 0 (PaLM: 1e-4); None leaves the term out and costs nothing.
        label_smoothing: in [0, 1), as in :class:`~components.losses.CrossEntropyLoss`.
        weight: per-token weights, shape (V,).
        ignore_index: target value (padding) that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per token, shape (N, T)).

    Shapes:
        logits (N, V, T), raw; target (N, T), token indices.

    Raises:
        ValueError: if ``z_loss < 0``, ``label_smoothing`` is outside [0, 1), shapes disagree or a target lies outside [0, V).

    Source:
        :func:`torch.nn.functional.cross_entropy`; z-loss: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, arXiv:2204.02311,
        sec. 5.
    """

    def __init__(
        self,
        *,
        z_loss: float | None = None,
        label_smoothing: float = 0.0,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, weight=weight, ignore_index=ignore_index, reduction=reduction)
        require(z_loss is None or z_loss >= 0, "z_loss must be >= 0, or null for none", z_loss)
        self.z_loss: float | Tensor | None = z_loss

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        cross_entropy = self._cross_entropy(logits, target)
        if self.z_loss is None:
            return cross_entropy
        log_total = logits.to(at_least_float32(logits.dtype)).logsumexp(1)
        return cross_entropy + self.z_loss * self.reduce(log_total.square(), target).to(logits.dtype)

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        check_target(logits, target, self.ignore_index)
        # a model computes (N, T, V) and shows it transposed: taking it back costs nothing, while torch would copy all logits
        flat = logits.movedim(1, -1).reshape(target.numel(), logits.shape[1])
        values = super().forward(flat, target.reshape(-1))
        return values.reshape(target.shape) if self.reduction == "none" else values


class LinearCrossEntropyLoss(Loss):
    r"""Cross-entropy of the next token straight from the hidden states: for large vocabularies, whose logits never exist as a whole.

    .. math:: \ell = -w_y \log \mathrm{softmax}(W h)_y

    The output layer and the loss are computed together, a chunk of tokens at a time, gradients included. That pays where there are more tokens in
    a batch than features, and more classes than features; else :class:`NextTokenCrossEntropyLoss` is faster.

    Args:
        chunk_size: tokens per chunk; None takes 256, or the number of features where that is smaller. That is enough for fast matrix products,
            and a chunk's logits then take no more memory than the gradient of ``output_weight``. (torch's own choice is a few tokens for a
            large vocabulary, which is up to four times slower on a CPU.)
        precision: what is kept in float32 while half-precision inputs are processed: ``"auto"`` | ``"accurate"`` | ``"balanced"`` | ``"compact"``
            (``acc_policy`` of :class:`torch.nn.LinearCrossEntropyOptions`).
        retain_graph: allow a second backward pass through the same value, at the cost of one more copy of the gradients.
        weight: per-token weights, shape (V,).
        ignore_index: target value (padding) that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per token, target's shape; its backward pass computes the chunks anew).

    Shapes:
        hidden_states (N, T, D) or (N, D); output_weight (V, D); target (N, T) or (N,), token indices.

    Raises:
        ValueError: if an option is invalid, shapes disagree or a target lies outside [0, V).

    Source:
        :func:`torch.nn.functional.linear_cross_entropy` (torch 2.13); the idea: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models",
        ICLR 2025, arXiv:2411.09009.
    """

    exempt: ClassVar[Mapping[str, str]] = {"second_order": "torch's chunked operator computes gradients in its forward pass and has no second derivative"}

    def __init__(
        self,
        *,
        chunk_size: int | None = None,
        precision: Literal["auto", "accurate", "balanced", "compact"] = "auto",
        retain_graph: bool = False,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(chunk_size is None or chunk_size >= 1, "chunk_size must be >= 1, or null to take it from the features", chunk_size)
        require_choice("precision", precision, ("auto", "accurate", "balanced", "compact"))
        self.chunk_size, self.precision, self.retain_graph = chunk_size, precision, retain_graph

    def forward(self, hidden_states: Tensor, output_weight: Tensor, target: Tensor) -> Tensor:
        if hidden_states.ndim < 2:
            raise ValueError(f"hidden_states must have shape (N, T, D) or (N, D), but got {tuple(hidden_states.shape)}")
        if output_weight.ndim != 2 or output_weight.shape[1] != hidden_states.shape[-1]:
            raise ValueError(f"output_weight must have shape (V, {hidden_states.shape[-1]}), but got {tuple(output_weight.shape)}")
        nothing_ignored = check_class_indices(target, hidden_states.shape[:-1], len(output_weight), self.ignore_index)
        self.check_weight(len(output_weight))
        if self.reduction != "mean" or (nothing_ignored and self.weight is None):
            values = self._fused(hidden_states, output_weight, target, self.reduction)
            return values.reshape(target.shape) if self.reduction == "none" else values
        summed = self._fused(hidden_states, output_weight, target, "sum")
        total = self.element_weights(target, at_least_float32(summed.dtype)).sum()
        return (summed / nonzero(total)).to(summed.dtype)

    def _fused(self, hidden_states: Tensor, output_weight: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
        dtype = hidden_states.dtype  # under autocast the states are half precision and the weight is not
        features = hidden_states.shape[-1]
        chunk_size = self.chunk_size or min(features, 256)
        options = nn.LinearCrossEntropyOptions(
            batch_chunk_size=chunk_size, chunking_method=None, acc_policy=self.precision, allow_retain_graph=self.retain_graph
        )
        return F.linear_cross_entropy(
            hidden_states.reshape(target.numel(), features),
            output_weight.to(dtype),
            target.reshape(-1),
            weight=None if self.weight is None else self.weight.to(dtype),
            reduction=reduction,
            ignore_index=self.ignore_index,
            options=options,
        )
