import pytest
import torch
from tiny_tasks import TinyData, build

from components.losses import SpectrogramMSELoss


def test_offers_the_sounds_of_the_batch() -> None:
    data = TinyData("separation")
    data.setup()
    batch = next(iter(data.train_dataloader()))
    task, _ = build("separation", loss=SpectrogramMSELoss())
    quantities = task.quantities(batch)
    for name in ("mixture", "mixture_magnitudes", "target_signals", "target_magnitudes"):
        assert torch.equal(quantities[name], batch[name])
    task.training_step(batch, 0).backward()
    assert all(p.grad is not None for p in task.model.parameters())


def test_data_without_sounds_are_refused() -> None:
    data = TinyData("segmentation")
    data.setup()
    task, _ = build("separation")
    with pytest.raises(ValueError, match="needs data with mixture, mixture_magnitudes, target_signals, target_magnitudes"):
        task.quantities(next(iter(data.train_dataloader())))
