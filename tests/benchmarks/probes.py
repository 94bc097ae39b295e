"""What looking ahead costs: remembering and putting back the state, beside a training step; the search's own decisions, beside a run.

    python tests/benchmarks/probes.py
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from components.callbacks.probes import Snapshot
from components.models import TransformerLM
from sweeps.autolrs.plan import Budget, Outcome, Probe, TrainingLosses

REPETITIONS = 15


class LanguageModel(lightning.LightningModule):
    """A transformer of ten million parameters with AdamW."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TransformerLM(vocab_size=256, sequence_length=64, width=448, depth=4, num_heads=8)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        logits = self.net(batch[0]).output
        return nn.functional.cross_entropy(logits, batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Timed(lightning.Callback):
    """Times training steps, and between them remembering and putting back."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.takes: list[float] = []
        self.restores: list[float] = []
        self.snapshot: Snapshot | None = None

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(time.perf_counter() - self.began)
        began = time.perf_counter()
        if self.snapshot is None:
            self.snapshot = Snapshot(trainer)
        else:
            self.snapshot.take()
        self.takes.append(time.perf_counter() - began)
        began = time.perf_counter()
        self.snapshot.restore()
        self.restores.append(time.perf_counter() - began)


def state_cost() -> None:
    module, timed = LanguageModel(), Timed()
    data = DataLoader(TensorDataset(torch.randint(256, (16 * REPETITIONS, 64))), batch_size=16)
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[timed])
    trainer.fit(module, data)
    step, take, restore = (statistics.median(values[2:]) for values in (timed.steps, timed.takes, timed.restores))
    size = sum(p.numel() for p in module.parameters())
    print(f"\n{size / 1e6:.1f}M parameters, AdamW, 16 x 64 tokens a step; medians of {REPETITIONS - 2}")
    print("| | ms | training steps |\n|---|---|---|")
    for name, seconds in (("training step", step), ("remember", take), ("put back", restore), ("both", take + restore)):
        print(f"| {name} | {1000 * seconds:.1f} | {seconds / step:.2f} |")


def decision_cost() -> None:
    """The methods played against made-up outcomes: all the time that is not training."""
    from sweeps.autolrs.methods import METHODS

    print("\n| method | own time of the whole search, ms | probes | of a run of 60 s |\n|---|---|---|---|")
    for name, (kind, preset) in METHODS.items():
        method = kind(low=1e-4, high=1.0, **preset, **({"stage": 0.1, "longest": 0.4} if name.startswith("paper") else {}))
        times = []
        for _ in range(5):
            began, count = time.perf_counter(), 0
            plan = method.plan(Budget(2000))
            request: Any = next(plan)
            while True:
                reply: Any = None
                if isinstance(request, Probe):
                    count += 1
                    losses = [2.0 / (1 + 0.02 * step) + 0.3 for step in range(request.steps)]
                    reply = Outcome(losses, [losses[-1]] * len(request.measure_after))
                elif hasattr(request, "until"):
                    if request.until == 2000:
                        break
                    reply = TrainingLosses([2.0 / (1 + 0.02 * step) + 0.3 for step in range(0, request.until, 5)], 5)
                request = plan.send(reply) if reply is not None else next(plan)
            times.append(time.perf_counter() - began)
        seconds = statistics.median(times)
        print(f"| {name} | {1000 * seconds:.0f} | {count} | {100 * seconds / 60:.2f} % |")


if __name__ == "__main__":
    torch.manual_seed(0)
    state_cost()
    decision_cost()
