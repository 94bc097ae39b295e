import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses import LinearCrossEntropyLoss, NextTokenCrossEntropyLoss


@pytest.fixture
def hidden() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(11, (3, 5), generator=generator)
    target[1, 3:] = -100
    return {
        "hidden_states": torch.randn(3, 5, 4, dtype=torch.float64, generator=generator).requires_grad_(),
        "output_weight": torch.randn(11, 4, dtype=torch.float64, generator=generator).requires_grad_(),
        "target": target,
    }


def logits_of(hidden: dict[str, Tensor]) -> Tensor:
    return (hidden["hidden_states"] @ hidden["output_weight"].T).transpose(1, 2)


WEIGHT = torch.linspace(0.5, 3, 11, dtype=torch.float64)


class TestNextToken:
    def test_worked_value(self) -> None:  # even over 4 tokens: ln 4; z-loss: + 0.1 · (ln 4)²
        logits, target = torch.zeros(1, 4, 2), torch.tensor([[0, 3]])
        assert NextTokenCrossEntropyLoss()(logits, target).item() == pytest.approx(math.log(4))
        assert NextTokenCrossEntropyLoss(z_loss=0.1)(logits, target).item() == pytest.approx(math.log(4) + 0.1 * math.log(4) ** 2)

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1}, {"weight": WEIGHT}], ids=str)
    def test_equals_torch(self, hidden: dict[str, Tensor], reduction: str, settings: dict) -> None:
        ours = NextTokenCrossEntropyLoss(reduction=reduction, **settings)(logits_of(hidden), hidden["target"])
        torch.testing.assert_close(ours, F.cross_entropy(logits_of(hidden), hidden["target"], reduction=reduction, **settings), rtol=1e-7, atol=1e-7)

    def test_z_loss_knows_padding_and_weights(self, hidden: dict[str, Tensor]) -> None:
        logits, target = logits_of(hidden), hidden["target"]
        kept = target != -100
        w = WEIGHT[target[kept]]
        penalty = (w * logits.logsumexp(1)[kept] ** 2).sum() / w.sum()
        plain = NextTokenCrossEntropyLoss(weight=WEIGHT)(logits, target)
        torch.testing.assert_close(NextTokenCrossEntropyLoss(weight=WEIGHT, z_loss=0.01)(logits, target), plain + 0.01 * penalty, rtol=1e-7, atol=1e-7)

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match="z_loss must be >= 0"):
            NextTokenCrossEntropyLoss(z_loss=-1.0)


class TestLinear:
    def test_worked_value(self) -> None:  # scores ln 2 and 0: p = 2/3
        states, weight = torch.tensor([[[math.log(2), 0.0]]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        assert LinearCrossEntropyLoss()(states, weight, torch.tensor([[0]])).item() == pytest.approx(math.log(1.5))

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
    @pytest.mark.parametrize("chunk_size", [None, 1, 4, 100])
    def test_equals_materialised_logits(self, hidden: dict[str, Tensor], reduction: str, weight: Tensor | None, chunk_size: int | None) -> None:
        ours = LinearCrossEntropyLoss(reduction=reduction, weight=weight, chunk_size=chunk_size)(**hidden)
        theirs = NextTokenCrossEntropyLoss(reduction=reduction, weight=weight)(logits_of(hidden), hidden["target"])
        torch.testing.assert_close(ours, theirs)
        leaves = (hidden["hidden_states"], hidden["output_weight"])
        torch.testing.assert_close(torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(theirs.sum(), leaves))

    def test_retain_graph(self, hidden: dict[str, Tensor]) -> None:
        value = LinearCrossEntropyLoss(retain_graph=True)(**hidden)
        first = torch.autograd.grad(value, hidden["output_weight"], retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(value, hidden["output_weight"]), first)

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match="chunk_size must be >= 1"):
            LinearCrossEntropyLoss(chunk_size=0)
        with pytest.raises(ValueError, match="precision must be one of"):
            LinearCrossEntropyLoss(precision="best")

    def test_saves_memory(self) -> None:
        """Peak memory of value and gradient beyond the inputs, 1,024 tokens × 16,384 classes in fresh processes: at most a third."""
        commands = {way: [sys.executable, "-c", MEASURE, way] for way in ("logits", "linear")}
        peaks = {way: int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for way, command in commands.items()}
        assert peaks["linear"] * 3 < peaks["logits"], f"kB: {peaks}"


MEASURE = """
import sys, torch
from components.losses import LinearCrossEntropyLoss, NextTokenCrossEntropyLoss
torch.set_num_threads(1)

def step(way, tokens, features, classes):
    states, weight = torch.randn(tokens, features, requires_grad=True), torch.randn(classes, features, requires_grad=True)
    target = torch.randint(classes, (tokens,))
    yield
    loss = LinearCrossEntropyLoss()(states, weight, target) if way == "linear" else NextTokenCrossEntropyLoss()(states @ weight.T, target)
    loss.backward()
    yield

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

list(step(sys.argv[1], 64, 8, 16))  # what is loaded at the first call is not counted
run = step(sys.argv[1], 1024, 64, 16384)
next(run)
before = peak()
next(run)
print(peak() - before)
"""
