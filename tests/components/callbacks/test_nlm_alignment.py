from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F

from components.callbacks import NLMAlignment, nlm_alignment


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    return layer


class TestAlignment:
    def test_worked_value(self) -> None:  # w = (3, 4), -gradient = (1, 2): 11 / (5 sqrt 5)
        layer = linear([[3.0, 4.0]])
        layer.weight.grad = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
        assert nlm_alignment(layer).item() == pytest.approx(11 / (5 * 5**0.5))

    def test_without_gradients_or_weights_it_is_zero(self) -> None:
        layer = linear([[0.0, 0.0]])
        assert nlm_alignment(layer) == 0
        layer.weight.grad = torch.ones_like(layer.weight)
        assert nlm_alignment(layer) == 0

    def test_scaling_the_weights_keeps_predictions_and_lowers_cross_entropy(self) -> None:
        """What the diagnostic is about: along the weights the loss falls and no prediction changes."""
        torch.manual_seed(0)
        inputs = torch.randn(64, 6, dtype=torch.float64)
        layer = linear(torch.randn(4, 6).tolist())
        target = layer(inputs).argmax(1)  # everything is fitted
        losses, predictions = [], []
        for scale in (1.0, 2.0, 4.0, 8.0):
            logits = scale * layer(inputs)
            losses.append(F.cross_entropy(logits, target).item())
            predictions.append(logits.argmax(1))
        assert losses == sorted(losses, reverse=True)
        assert all(torch.equal(p, predictions[0]) for p in predictions)
        F.cross_entropy(layer(inputs), target).backward()
        assert nlm_alignment(layer) > 0.3


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(3, 2)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TestCallback:
    def test_logs_every_so_many_steps(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        data = torch.utils.data.TensorDataset(torch.randn(20, 3), torch.randint(2, (20,)))
        logger = CSVLogger(tmp_path)
        trainer = lightning.Trainer(
            max_steps=5, logger=logger, callbacks=[NLMAlignment(2)], enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            accelerator="cpu",
        )  # fmt: skip
        trainer.fit(Module(), torch.utils.data.DataLoader(data, batch_size=4))
        rows = [row for row in logger.experiment.metrics if "train/nlm_alignment" in row] or Path(logger.log_dir, "metrics.csv").read_text().splitlines()[1:]
        assert len(rows) == 3  # before steps 0, 2 and 4
        assert -1 <= trainer.callback_metrics["train/nlm_alignment"] <= 1

    def test_refuses_no_steps(self) -> None:
        with pytest.raises(ValueError, match="every_n_steps must be >= 1"):
            NLMAlignment(0)
