"""Adversarial calibration: a small head on a frozen encoder learns, from attacked inputs alone, to undo what an attack does to embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from components.binding import gather_rows
from components.data.base import Batch, DataModule
from components.models.base import features_of
from components.quantities import Quantities, lazy
from components.tasks.base import Average, Task
from components.tasks.distillation import check_training
from components.validation import require


class AdversarialCalibrationTask(Task):
    r"""Predict classes by the nearest centre of a frozen encoder's embeddings, with a head that makes them robust.

    The encoder is a model that has been trained already, as a distillation's teacher is: a finished run's, or one trained first. It and the class
    centres :math:`c_k` (mean embeddings of the clean training samples, of length 1) stay as they are; the head alone learns.

    .. math:: \text{logits}_k = \frac{h(f(x))}{\lVert h(f(x)) \rVert} \cdot \frac{c_k}{\tau}, \qquad
              x' = \text{PGD}_\epsilon\big(x;\ \operatorname{CE} \text{ of the encoder without the head}\big)

    Logged beside the metrics, which are of clean inputs: ``robust_acc``, on inputs attacked as in training, and ``adaptive_acc``, on inputs attacked
    through the head (who knows the head attacks it too). What the encoder has without a head is what ``optimizer.lr=0`` logs.

    Args:
        model: only says how the encoder is built; the encoder takes its place.
        teacher: the encoder; it reports features.
        teacher_run, teacher_model, teacher_epochs, teacher_lr: where the builder gets it from, see
            :class:`~components.tasks.DistillationTask`. They are noted here and no more.
        num_classes: C.
        feature_dim: D.
        rank: of the head's correction :math:`h(z) = z + U V z`; ``null``: a whole linear layer. Both start as the identity.
        temperature: :math:`\tau` > 0, of the logits and of the attacked cross-entropy.
        epsilon: largest change of any input value, >= 0; the paper's 4/255 is of pixels in [0, 1].
        attack_steps: of PGD, >= 1.
        attack_step_size: of PGD; default: ``epsilon / 4``.
        input_range: ``[lowest, highest]`` input value that an attack may make; ``null``: any.

    Shapes:
        teacher_features, clean_embeddings, adversarial_embeddings (N, D); class_centers (C, D); logits (N, C); target (N,).

    Raises:
        ValueError: an option out of its range, an encoder without features, or no data module to take the centres from.

    Source:
        Liao et al., "Adversarial Robustness for Unified Multi-Modal Encoders via Efficient Calibration", 2025, arXiv:2505.11895; the attack: Madry et
        al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083. The head's form, the attack's
        steps and the adaptive attack are our reading.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"logits", "target", "clean_embeddings", "adversarial_embeddings", "teacher_features", "class_centers"})
    metric_stages = ("val", "test")
    own_metrics: ClassVar[dict[str, bool]] = {"robust_acc": True, "adaptive_acc": True}

    class_centers: Tensor

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        teacher: nn.Module,
        num_classes: int,
        feature_dim: int,
        teacher_run: str | None = None,
        teacher_model: Any = None,
        teacher_epochs: int = 10,
        teacher_lr: float = 1e-3,
        rank: int | None = 16,
        temperature: float = 0.07,
        epsilon: float = 4 / 255,
        attack_steps: int = 10,
        attack_step_size: float | None = None,
        input_range: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher.requires_grad_(False), *args, **kwargs)
        check_training(teacher_epochs, teacher_lr)
        require(temperature > 0, "temperature must be > 0", temperature)
        require(epsilon >= 0, "epsilon must be >= 0", epsilon)
        require(attack_steps >= 1, "attack_steps must be >= 1", attack_steps)
        require(attack_step_size is None or attack_step_size > 0, "attack_step_size must be > 0", attack_step_size)
        require(input_range is None or (len(input_range) == 2 and input_range[0] < input_range[1]), "input_range must be [lowest, highest]", input_range)
        self.model.eval()
        self.teacher_source = {"run": teacher_run, "epochs": teacher_epochs, "lr": teacher_lr}
        self.num_classes, self.temperature = num_classes, temperature
        self.attack = {
            "epsilon": epsilon,
            "steps": attack_steps,
            "step_size": epsilon / 4 if attack_step_size is None else attack_step_size,
            "input_range": None if input_range is None else tuple(input_range),
        }
        size = getattr(teacher, "feature_dim", feature_dim)
        self.head = CalibrationHead(size, rank)
        self.register_buffer("class_centers", torch.zeros(num_classes, size))
        self._right = {(stage, name): Average() for stage in ("val", "test") for name in self.own_metrics}

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        kind = data["target_kind"]
        require(kind == "multiclass", "task=adversarial_calibration needs one class a sample: target_kind must be 'multiclass'", kind)
        return {"num_outputs": data["num_classes"]}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.model.eval()
        return self

    # -- the class centres, once: later they are in the checkpoint -----------------------------------------------------------------
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self.global_step == 0 and batch_idx == 0:
            self.find_centers()

    @torch.no_grad()
    def find_centers(self) -> None:
        """Mean embeddings of length 1 of the classes of the training split."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, DataModule):
            raise ValueError("task=adversarial_calibration takes class centres from its data: fit with datamodule=, a components.data.DataModule")
        precision = self.trainer.precision_plugin
        total = torch.zeros_like(self.class_centers, dtype=torch.float64)
        for batch in data.loader("train", data.eval_batch_size):
            with precision.forward_context():
                embedded = normalize(features_of(self.model, precision.convert_input(batch["inputs"].to(self.device))).float(), dim=1)
            total += one_hot(batch["target"].to(self.device), self.num_classes).double().T @ embedded.double()
        total = gather_rows(total.unsqueeze(0)).sum(0)
        self.class_centers.copy_(normalize(total, dim=1))

    # -- quantities -----------------------------------------------------------------------------------------------------------------
    def quantities(self, batch: Batch) -> Quantities:
        inputs, target = batch["inputs"], batch["target"]
        with torch.no_grad():
            clean = features_of(self.model, inputs)
        return self.common(
            batch,
            teacher_features=clean,
            class_centers=self.class_centers,
            clean_embeddings=lazy(lambda q: self.head(q["teacher_features"])),
            logits=lazy(lambda q: self.scores(q["clean_embeddings"])),
            adversarial_embeddings=lazy(lambda q: self.head(self.encode(self.attacked(inputs, target)))),
        )

    def encode(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return features_of(self.model, inputs)

    def scores(self, embeddings: Tensor) -> Tensor:
        """Cosines to the centres over the temperature."""
        return normalize(embeddings, dim=1) @ self.class_centers.to(embeddings.dtype).T / self.temperature

    def attacked(self, inputs: Tensor, target: Tensor, *, through_head: bool = False) -> Tensor:
        """Inputs as the attack leaves them; ``through_head``: of the whole, else of the encoder alone."""

        def loss(changed: Tensor, target: Tensor) -> Tensor:
            features = features_of(self.model, changed)
            return cross_entropy(self.scores(self.head(features) if through_head else features).float(), target, reduction="none")

        return projected_gradient(loss, inputs, target, **self.attack)  # type: ignore[arg-type]

    # -- validation -----------------------------------------------------------------------------------------------------------------
    def evaluate_more(self, stage: str, quantities: Quantities) -> None:
        target = quantities["target"]
        through_head = self.encode(self.attacked(quantities["inputs"], target, through_head=True))
        found = {"robust_acc": quantities["adversarial_embeddings"], "adaptive_acc": self.head(through_head)}
        for name, embeddings in found.items():
            self._right[stage, name].update((self.scores(embeddings).argmax(1) == target).float().mean(), len(target))

    def evaluation(self, stage: str) -> dict[str, float]:
        values = super().evaluation(stage)
        found = {f"{stage}/{name}": self._right[stage, name].compute(self) for name in self.own_metrics}
        return values | {name: value for name, value in found.items() if value is not None}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        probabilities = self.scores(self.head(self.encode(batch["inputs"]))).softmax(1)
        return {"prediction": probabilities.argmax(1), "probability": probabilities}


class CalibrationHead(nn.Module):
    """``z + U V z`` of a low rank, or a whole linear layer; either starts as the identity.

    Args:
        size: D, of what comes in and goes out.
        rank: of the correction, in 1 … D; ``None``: the linear layer.
    """

    def __init__(self, size: int, rank: int | None) -> None:
        super().__init__()
        require(rank is None or 1 <= rank <= size, f"rank must be in 1 … {size} (the encoder's feature_dim)", rank)
        self.low_rank = rank is not None
        if rank is None:
            self.linear = nn.Linear(size, size)
            nn.init.eye_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        else:
            self.down, self.up = nn.Linear(size, rank, bias=False), nn.Linear(rank, size)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, features: Tensor) -> Tensor:
        corrected: Tensor = features + self.up(self.down(features)) if self.low_rank else self.linear(features)
        return corrected


def projected_gradient(
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    target: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    input_range: tuple[float, float] | None = None,
) -> Tensor:
    r"""Projected gradient ascent in the box of half-width ``epsilon`` around ``inputs``, from ``inputs`` themselves.

    .. math:: x \leftarrow \operatorname{clip}_{[x_0 - \epsilon,\, x_0 + \epsilon]}\big(x + a \operatorname{sign} \nabla_x \ell(x)\big)

    Of each sample that point of the way is given back where its loss was highest, so it is never below the clean one's. Works in
    evaluation, where gradients are switched off, and leaves no gradient at parameters.

    Args:
        loss: (inputs, target) -> (N,).
        inputs: where the attack starts.
        target: handed on to ``loss``.
        epsilon: half-width of the box.
        steps: of ascent.
        step_size: *a*.
        input_range: the lowest and highest value, unless any may be.

    Source:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083.
    """
    with torch.inference_mode(False), torch.enable_grad():
        start, target = inputs.detach().clone(), target.clone()
        lowest, highest = start - epsilon, start + epsilon
        if input_range is not None:
            lowest, highest = lowest.clamp(min=input_range[0]), highest.clamp(max=input_range[1])
            lowest, highest = torch.minimum(lowest, start), torch.maximum(highest, start)  # inputs outside the range stay where they are
        point = best = start
        best_loss = torch.full((len(start),), -torch.inf, device=start.device)
        for step in range(steps + 1):
            point = point.detach().requires_grad_()
            values = loss(point, target)
            higher = values.detach() > best_loss
            best = torch.where(higher.reshape(-1, *[1] * (start.ndim - 1)), point.detach(), best)
            best_loss = torch.where(higher, values.detach().to(best_loss.dtype), best_loss)
            if step < steps:
                (gradient,) = torch.autograd.grad(values.sum(), point)
                point = torch.minimum(torch.maximum(point.detach() + step_size * gradient.sign(), lowest), highest)
        return best
