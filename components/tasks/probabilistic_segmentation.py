"""Probabilistic segmentation: several plausible masks of a picture, drawn from a latent, against the masks of several raters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from components.data.base import Batch
from components.models.probabilistic_unet import ProbabilisticUNet, gaussian_kl
from components.quantities import Quantities
from components.tasks.base import Task
from components.validation import require


class ProbabilisticSegmentationTask(Task):
    """Draw segmentations as the raters would.

    In training each picture's posterior sees the mask of one of its raters, drawn at random, and the samples are drawn from it. In validation and test they
    are drawn from the prior, with the same noise for every picture and run; the posterior, of which the divergence is still asked, sees the first rater's.

    Args:
        num_classes: C.
        samples: S, drawn of each picture in training; None: as many as it has raters.
        eval_samples: the same in validation, test and prediction.

    Shapes:
        inputs (N, channels, H, W); rater_targets (N, R, H, W), from the data; target (N, H, W), the mask that the posterior saw; sample_logits
        (N, S, C, H, W); latent_kl (N,); features (N, D).

    Raises:
        ValueError: if the data have no raters, or the model no latent.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"sample_logits", "rater_targets", "latent_kl", "target", "features"})

    def __init__(self, *args: Any, num_classes: int, samples: int | None = None, eval_samples: int = 8, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require(num_classes >= 2, "num_classes must be >= 2 (background is a class)", num_classes)
        require(samples is None or samples >= 1, "samples must be >= 1", samples)
        require(eval_samples >= 1, "eval_samples must be >= 1", eval_samples)
        self.num_classes, self.samples, self.eval_samples = num_classes, samples, eval_samples
        if not all(hasattr(self.model, method) for method in ("maps", "prior", "posterior", "decode", "latent_dim")):
            raise ValueError(
                f"task=probabilistic_segmentation needs a model with a latent (model=probabilistic_unet), but model is {type(self.model).__name__}"
            )

    @property
    def latent_model(self) -> ProbabilisticUNet:
        """The model, which has a latent: it need not be this class, but has its methods."""
        return cast(ProbabilisticUNet, self.model)

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        kind = data["target_kind"]
        require(kind == "multiclass", "task=probabilistic_segmentation needs one class a pixel: target_kind must be 'multiclass'", kind)
        return {"num_outputs": data["num_classes"]}

    def quantities(self, batch: Batch) -> Quantities:
        if "rater_targets" not in batch:
            raise ValueError("task=probabilistic_segmentation needs data with rater_targets (N, R, H, W): data=rater_shapes has them")
        inputs, raters, model = batch["inputs"], batch["rater_targets"], self.latent_model
        if self.training:
            chosen = torch.randint(raters.shape[1], (len(raters),), device=raters.device)
            target = raters[torch.arange(len(raters), device=raters.device), chosen]
        else:
            target = raters[:, 0]
        maps = model.maps(inputs)
        mean, log_std = model.posterior(inputs, one_hot(target, self.num_classes).movedim(-1, 1))
        prior_mean, prior_log_std = model.prior(inputs)
        kl = gaussian_kl(mean.float(), log_std.float(), prior_mean.float(), prior_log_std.float()).to(mean.dtype)
        if self.training:
            count = self.samples or raters.shape[1]
            latent = mean.unsqueeze(1) + log_std.exp().unsqueeze(1) * torch.randn(len(inputs), count, mean.shape[1], dtype=mean.dtype, device=mean.device)
        else:
            latent = self.fixed_draws(prior_mean, prior_log_std)
        features = maps.flatten(2).mean(2)
        return self.common({**batch, "target": target}, sample_logits=model.decode(maps, latent), latent_kl=kl, features=features)

    def fixed_draws(self, mean: Tensor, log_std: Tensor) -> Tensor:
        """(N, S, D): draws whose noise is the same for every picture, at any time."""
        noise = torch.randn(self.eval_samples, mean.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return mean.unsqueeze(1) + log_std.exp().unsqueeze(1) * noise.to(mean)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``prediction`` (N, H, W), the class of the largest mean probability; ``area`` (N, C), each class's mean share of the pixels; ``disagreement``
        (N,): how many pixels of a sample differ from the prediction, on average."""
        model = self.latent_model
        mean, log_std = model.prior(batch["inputs"])
        probabilities = model.decode(model.maps(batch["inputs"]), self.fixed_draws(mean, log_std)).float().softmax(2)
        prediction, drawn = probabilities.mean(1).argmax(1), probabilities.argmax(2)
        area = one_hot(drawn, self.num_classes).float().flatten(1, -2).mean(1)
        return {"prediction": prediction, "area": area, "disagreement": (drawn != prediction.unsqueeze(1)).float().flatten(1).mean(1)}
