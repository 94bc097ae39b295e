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
    # ranking: candidates are the classes of logits and target_multi_hot, (N, L), NaN in target_multi_hot for one that is left out
    "positive_scores": "(N,) score of one wanted candidate of each query",
    "negative_scores": "(N, M) scores of sampled candidates that are not wanted",
    "branch_logits": "(N, C, K) raw scores of the K branches of a model, logits fuses them",
    "bids": "(N, C) what each ad of an auction bids for a click, >= 0",
    "click_rate": "(N, C) true click probabilities, where they are known: for metrics",
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
    # segmentation by several raters, and of crops
    "sample_logits": "(N, S, C, d1, …) raw class scores of S segmentations drawn from a probabilistic model",
    "rater_targets": "(N, R, d1, …) the masks of R raters, class indices",
    "latent_kl": "(N,) Kullback-Leibler divergence of the latent's posterior from its prior",
    "target_projections": "for each axis (N, C, …) without it, in [0, 1]: the largest along it of the whole that the target is a crop of",
    # separation of sources
    "mixture": "(N, L) the mixture's signal",
    "mixture_magnitudes": "(N, F, T) magnitude spectrogram of the mixture",
    "target_signals": "(N, K, L) signals of the sources",
    "target_magnitudes": "(N, K, F, T) magnitude spectrograms of the sources",
    # class-incremental learning: what is kept of classes whose samples are gone
    "feature_means": "(M, D) means of Gaussians that stand for the features of classes",
    "feature_covariances": "(M, D, D) their covariances, or (M, D) variances",
    "class_target": "(M,) the class of each of these Gaussians, long",
    "is_old": "(M,) 1 for a class of an earlier phase, else 0",
    "output_bias": "(C,) the output layer's bias",
    # label proportions
    "proportions": "(N, C) share of each class among the samples of the sample's bag",
    "bag": "(N,) number of the sample's bag, long",
    "bag_size": "(N,) samples in the sample's bag",
    "instance_target": "(N,) classes of single samples where training knows bags alone: for metrics, of validation and test",
    # pairs of views with noisy correspondence
    "embeddings_1": "(N, D) embedding of each pair's first view, of all heads",
    "embeddings_2": "(N, D) embedding of each pair's second view, of all heads",
    "training_losses": "(H, num_samples) loss of every training sample under each of H heads, at the start of the epoch",
    # adversarial calibration
    "adversarial_embeddings": "(N, D) embeddings of inputs that an adversary has changed",
    "clean_embeddings": "(N, D) embeddings of the inputs as they are, where there are adversarial_embeddings too",
    "class_centers": "(C, D) fixed centre of each class among the embeddings",
    # differential equations
    "residual": "(N, K) what is left of the K differential equations at the points, 0 where the model solves them",
    "initial_residual": "(N, K) the model at time 0 less the initial values",
    "boundary_residual": "(N, K) the model at one end of the domain less that at the other, at the points' times",
    # decisions
    "lifetime_value": "(N,) what a customer is worth over the years if kept, in money",
    # sparse recovery
    "measurement_residual": "(N, M) the measurements of the predicted signal less the given ones",
    # pictures
    "image": "(N, C, H, W) the picture that the model puts out",
    "target_image": "(N, C, H, W) the picture that it should be",
    # ratings
    "target_mean": "(N,) or (N, d1, …) mean rating, on the scale of the levels 1 … C",
    "target_std": "(N,) or (N, d1, …) standard deviation of the ratings, on the same scale",
    "group": "(N,) which data set (rater, query …) a sample is of, long",
    "level_score": "(N,) expected level of the predicted distribution, in [1, C]",
    # densities
    "log_density": "(N,) the model's unnormalised log density of the data",
    "log_noise": "(N,) the log density of the data under the noise distribution",
    "noise_log_density": "(N, R) the model's unnormalised log density of R noise samples to a sample of data",
    "noise_log_noise": "(N, R) the log density of the noise samples under the noise distribution",
    "normalised_log_density": "(N,) log_density less the logarithm of its integral over a grid",
}

FACTS: dict[str, str] = {
    "num_classes": "number of classes",
    "class_counts": "training samples of each class, list of int",
    "class_names": "names of the classes, list of str",
    "num_samples": "training samples",
    "num_features": "input columns of a table",
    "in_channels": "input channels of an image or a series",
    "image_size": "height and width of an image; depth, height and width of a volume",
    "input_shape": "shape of one input, without the batch",
    "num_targets": "columns to predict",
    "target_kind": "multiclass | multilabel | real",
    "history_length": "L, observed steps before the forecast",
    "horizon": "H, steps to forecast",
    "item_features": "features of each candidate of a ranking, L lists of F numbers",
    "vocab_size": "tokens of the vocabulary",
    "sequence_length": "tokens of one sample",
    "num_outputs": "outputs that the task and the loss need from the model",
    "head": "what the loss has a regression model put out for each target: point | gaussian | quantile",
    "feature_dim": "size of the model's features",
    "embedding_dim": "size of the embedding that the task asks for",
    "total_steps": "optimizer steps of the whole run",
    "steps_per_epoch": "optimizer steps of one epoch",
    "batch_size": "samples in a batch, over all devices",
    "equation": "the differential equation that the data solve, a dict of its coefficients",
    "measurement_matrix": "the matrix that takes a signal to its measurements, a list of M rows of N numbers",
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
