"""The vocabulary that binds components: every tensor a task may offer and a loss may ask for, every fact of the data.

A loss's ``forward`` parameters, a regularizer's, a reweighter's and a metric's inputs are names from :data:`QUANTITIES`.
Constructor parameters named in :data:`FACTS` are filled from the data, the task and the trainer unless the config sets them.
This module imports no torch: the command line reads it for ``losskit list`` and ``losskit show``.

Shapes: N batch, C classes, D feature size, T targets or tokens, H horizon, L history, V vocabulary, d1… spatial dims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

QUANTITIES: dict[str, str] = {
    # what every task offers
    "inputs": "(N, …) what the model was given",
    "index": "(N,) position of each sample in the training set, long",
    "target": "what is to be predicted, in the task's own form: class indices (N,) or (N, d1, …), values (N, T), future (N, H, C), tokens (N, T)",
    "features": "(N, D) the model's penultimate representation",
    "model": "the model itself (nn.Module)",
    "step": "optimizer steps taken so far, int",
    "epoch": "epochs completed so far, int",
    "loss_fn": "the bound main loss: a function of a mapping of quantities",
    "per_sample_loss": "(N,) the main loss without reduction",
    # classification, segmentation, language modelling
    "logits": "(N, C) or (N, C, d1, …) raw class scores",
    "target_multi_hot": "(N, C) or (N, C, d1, …) float in {0, 1}: one-hot for one class per sample, multi-hot for several",
    # regression, forecasting
    "prediction": "the point prediction, shaped like target",
    "log_variance": "predicted log variance, shaped like target (a loss with head='gaussian')",
    "quantiles": "predicted quantiles, target's shape + (Q,) (a loss with head='quantile')",
    "history": "(N, L, C) the observed past",
    # metric learning, self-supervision
    "embeddings": "(N, D) raw (not normalised) embeddings",
    "projections_1": "(N, D) projection of the first view",
    "projections_2": "(N, D) projection of the second view",
    "features_1": "(N, D) features of the first view",
    "features_2": "(N, D) features of the second view",
    # distillation
    "teacher_logits": "(N, C) the teacher's raw class scores, no gradient",
    "teacher_features": "(N, D) the teacher's features, no gradient",
    # language modelling
    "hidden_states": "(N, T, D) the last hidden states, before the output layer",
    "output_weight": "(V, D) the output layer's weight",
}

FACTS: dict[str, str] = {
    "num_classes": "number of classes",
    "class_counts": "training samples of each class, list of int",
    "class_names": "names of the classes, list of str",
    "num_samples": "training samples",
    "num_features": "input columns of a table",
    "in_channels": "input channels of an image or a series",
    "image_size": "height and width of an image",
    "input_shape": "shape of one input, without the batch",
    "num_targets": "columns to predict",
    "target_kind": "multiclass | multilabel | real",
    "history_length": "L, observed steps before the forecast",
    "horizon": "H, steps to forecast",
    "vocab_size": "tokens of the vocabulary",
    "sequence_length": "tokens of one sample",
    "num_outputs": "outputs that the task and the loss need from the model",
    "head": "what the loss has a regression model put out for each target: point | gaussian | quantile",
    "feature_dim": "size of the model's features",
    "embedding_dim": "size of the embedding that the task asks for",
    "total_steps": "optimizer steps of the whole run",
    "steps_per_epoch": "optimizer steps of one epoch",
    "batch_size": "samples in a batch, over all devices",
}


class Quantities(Mapping[str, Any]):
    """A mapping of named quantities whose costly members are computed when first asked for.

    A value wrapped by :class:`lazy` is a function of the mapping, evaluated once, on demand: what no component asks for costs nothing.

    >>> q = Quantities(a=1, b=lazy(lambda q: q["a"] + 1))
    >>> q["b"], sorted(q), q.replace(a=5)["b"]
    (2, ['a', 'b'], 6)
    """

    def __init__(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        self._values: dict[str, Any] = {**(values or {}), **more}
        self._computed: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        if not isinstance(value, lazy):
            return value
        if name not in self._computed:
            self._computed[name] = value.compute(self)
        return self._computed[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def replace(self, **values: Any) -> Quantities:
        """A copy with some members replaced; lazy members are computed anew, from the replaced ones."""
        return Quantities(self._values, **values)

    def without(self, *names: str) -> Quantities:
        """A copy that lacks some members."""
        return Quantities({name: value for name, value in self._values.items() if name not in names})


class lazy:
    """Marks a quantity to be computed on demand: ``lazy(lambda q: q["logits"].softmax(1))``."""

    __slots__ = ("compute",)

    def __init__(self, compute: Callable[[Quantities], Any]) -> None:
        self.compute = compute
