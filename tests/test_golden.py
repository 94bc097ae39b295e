"""Golden loss curves: three experiments whose training losses are compared bit for bit with what is stored.

A change that is meant to change no numbers changes none. Where it is meant to: ``make golden``, and say why in the changelog.
The curves are computed in a process of their own that is held to one thread and to instructions that every x86-64 processor
has, so that the bits do not depend on the machine.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden.json"
LICENSE = GOLDEN.parent.parent / "LICENSE"
EXPERIMENTS = {
    "digits": ["data=digits", "model=mlp", "loss=focal", "regularizer=[l2,confidence_penalty]", "transform=[mixup]", "schedule=wsd", "averaging=ema"],
    "diabetes": ["data=diabetes", "loss=gaussian_nll", "optimizer=adamw", "schedule=one_cycle", "seed=3"],
    # not the standard library's text, which is another one in each Python
    "byte_lm": ["experiment=byte_lm", "data=text", f"data.path='{LICENSE}'", "data.sequence_length=32", "data.batch_size=8", "model.width=32",
                "model.num_heads=2"],
}  # fmt: skip
COMMON = ["trainer.max_steps=30", "trainer.max_epochs=-1", "trainer.log_every_n_steps=1", "trainer.limit_val_batches=0", "trainer.val_check_interval=1.0",
          "trainer.check_val_every_n_epoch=1", "test=false", "tracking=none", "trainer.accelerator=cpu"]  # fmt: skip
PLAIN_MACHINE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}


def curves() -> dict[str, list[str]]:
    """The training loss of every step, as hexadecimal floats."""
    import torch
    from lightning.pytorch.loggers import CSVLogger

    from losskit_cli.build import Builder
    from losskit_cli.commands import spec_of
    from losskit_cli.compose import Composer
    from losskit_cli.run import quiet_libraries

    class Recorder(CSVLogger):
        """Keeps the losses in memory, exactly."""

        def __init__(self) -> None:
            super().__init__(tempfile.mkdtemp())
            self.losses: list[str] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if "train/loss" in metrics:
                self.losses.append(float(metrics["train/loss"]).hex())

    torch.set_num_threads(1)
    quiet_libraries()
    found = {}
    for name, overrides in EXPERIMENTS.items():
        spec = spec_of(Composer().compose([*overrides, *COMMON]))
        recorder = Recorder()
        experiment = Builder(spec.config, spec.choices).experiment(loggers=[recorder])
        experiment.trainer.fit(experiment.task, datamodule=experiment.data)
        found[name] = recorder.losses
    return found


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the stored bits are those of x86-64 instructions")
def test_loss_curves_are_the_golden_ones_bit_for_bit() -> None:
    done = subprocess.run([sys.executable, __file__, "--print"], env={**os.environ, **PLAIN_MACHINE}, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    found, golden = json.loads(done.stdout.splitlines()[-1]), json.loads(GOLDEN.read_text())
    assert {name: len(losses) for name, losses in found.items()} == dict.fromkeys(EXPERIMENTS, 30)
    for name, losses in golden.items():
        first = next((step for step, pair in enumerate(zip(losses, found[name], strict=True)) if pair[0] != pair[1]), None)
        assert first is None, f"{name} differs from step {first} on: {float.fromhex(losses[first])!r} before, {float.fromhex(found[name][first])!r} now"


if __name__ == "__main__":
    if "--write" in sys.argv:
        text = subprocess.run([sys.executable, __file__, "--print"], env={**os.environ, **PLAIN_MACHINE}, capture_output=True, text=True, check=True).stdout
        GOLDEN.write_text(json.dumps(json.loads(text.splitlines()[-1]), indent=1) + "\n")
    else:
        sys.stdout.write(json.dumps(curves()) + "\n")
