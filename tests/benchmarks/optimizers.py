"""What a step of each optimizer costs beside torch's AdamW, and what it keeps: ``python optimizers.py [--json] [--rounds N] [OPTION …]``.

All options of ``conf/optimizer`` with their defaults, on the parameters of a transformer language model of 10M and made-up gradients.
Each is measured in turns with ``torch.optim.AdamW(foreach=True)``, step by step, so that whatever else the machine does meets both.

ratio       median time of a step / median time of AdamW's in the same turns
all in      … with what is done only every ``update_gap`` steps (FRUGAL's draw, Fira's decompositions) spread over them; this is what is promised
in training … of a whole training step: forward, backward (8 sequences of 128 tokens) and the optimizer's step
bytes       of state a parameter (AdamW: 8), whatever a step needs beside it for a moment not counted

L-BFGS is left out: its step is twenty evaluations of the model and more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer

from components.models import TransformerLM
from components.models.base import split_output

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
LEFT_OUT = ("lbfgs",)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"fira, bfloat16": ("fira", {"products": "bfloat16"})}
LIMITS = {"ademamix": 1.5, "momo_adam": 1.5, "frugal": 1.5, "fira": 1.5}
"""The largest ratios that were promised."""
WARM_UP = 2


def new_model() -> TransformerLM:
    return TransformerLM(256, 128, width=320, depth=8, num_heads=8)


def seconds_of_gradients(rounds: int) -> float:
    """Forward and backward of a small batch."""
    model, times = new_model(), []
    tokens = torch.randint(0, 256, (8, 128), generator=torch.Generator().manual_seed(0))
    for _ in range(rounds):
        began = time.perf_counter()
        model.zero_grad()
        split_output(model(tokens)).output.logsumexp(-1).mean().backward()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


class Stepper:
    """A model's parameters with gradients, and an optimizer of them."""

    def __init__(self, make: Callable[[nn.Module], Optimizer]) -> None:
        model = new_model()
        generator = torch.Generator().manual_seed(0)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make(model)
        for p in self.parameters:
            p.grad = torch.randn(p.shape, generator=generator).mul_(1e-3)
        self.loss = torch.tensor(2.0)
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # type: ignore[attr-defined]

    def step(self) -> float:
        """The seconds that a step takes."""
        began = time.perf_counter()
        self.optimizer.step(lambda: self.loss)  # type: ignore[arg-type,return-value]
        return time.perf_counter() - began

    def count(self) -> int:
        return sum(p.numel() for p in self.parameters)

    def state_bytes(self) -> int:
        seen: dict[int, int] = {}
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    seen[id(value)] = value.numel() * value.element_size()
        return sum(seen.values())


def adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-6, foreach=True)


def maker(option: str) -> Callable[[nn.Module], Optimizer]:
    """An option's optimizer, on the groups that the command line would give it; a small rate, so that many steps leave the weights sane."""
    option, changed = VARIANTS.get(option, (option, {}))
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
    for key in ("decay_only_matrices", "defaults"):
        node.pop(key, None)
    make: Any = get_object(node.pop("_target_"))
    grouped = getattr(make, "groups", lambda model, parameters: parameters)

    def made(model: nn.Module) -> Optimizer:
        optimizer: Optimizer = make(grouped(model, [p for p in model.parameters() if p.requires_grad]), **{**node, **changed, "lr": 1e-6})
        return optimizer

    return made


def measure(option: str, rounds: int, gradients: float) -> dict[str, Any]:
    """One row of the table; ``gradients``: the seconds that a forward and a backward pass take."""
    reference, stepper = Stepper(adamw), Stepper(maker(option))
    first = stepper.step()
    reference.step()
    for _ in range(WARM_UP):
        reference.step(), stepper.step()
    times = [(reference.step(), stepper.step()) for _ in range(rounds)]
    baseline, own = (statistics.median(column) for column in zip(*times, strict=True))
    group = stepper.optimizer.param_groups[0]
    rare = max(first - own, 0.0) / group["update_gap"] if "update_gap" in group else 0.0
    return {
        "optimizer": option,
        "ms": own * 1e3,
        "ratio": own / baseline,
        "all_in": (own + rare) / baseline,
        "in_training": (gradients + own + rare) / (gradients + baseline),
        "bytes": stepper.state_bytes() / stepper.count(),
        "limit": LIMITS.get(option),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", metavar="OPTION", help="optimizers to measure; default: all")
    parser.add_argument("--rounds", type=int, default=15, help="measured steps of each")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    options = given.options or sorted([*(p.stem for p in CONF.glob("*.yaml") if p.stem not in LEFT_OUT), *VARIANTS])
    torch.manual_seed(0)
    rows = []
    gradients = seconds_of_gradients(3)
    if not given.json:
        print(f"{Stepper(adamw).count() / 1e6:.1f}M parameters, {torch.get_num_threads()} threads, {given.rounds} rounds, gradients {gradients * 1e3:.0f} ms")
        print(f"{'optimizer':22}{'ms':>8}{'ratio':>8}{'all in':>8}{'in training':>13}{'bytes':>8}")
    for option in options:
        rows.append(row := measure(option, given.rounds, gradients))
        if not given.json:
            mark = "" if row["limit"] is None else f"   ≤ {row['limit']}: {'yes' if row['all_in'] <= row['limit'] else 'NO'}"
            print(f"{option:22}{row['ms']:8.1f}{row['ratio']:8.2f}{row['all_in']:8.2f}{row['in_training']:13.2f}{row['bytes']:8.2f}{mark}", flush=True)
    if given.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
