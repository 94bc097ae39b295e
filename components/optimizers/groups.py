"""Which parameters get which options: no weight decay on biases and norms; and the learning rate of all groups together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from components.validation import require

Group = dict[str, Any]

Parameters = nn.Module | Iterable[nn.Parameter] | Iterable[Group]


def parameter_groups(parameters: Parameters, weight_decay: float) -> list[Group]:
    """Parameter groups in which only matrices and kernels decay: biases, norms and scales have fewer than two dimensions and do not.

    In an option file this is ``decay_only_matrices: true``: the builder takes that key out and gives the optimizer these groups.

    Args:
        parameters: a module, parameters, or groups (each is split in two and keeps its options).
        weight_decay: the decay of what decays, >= 0.

    Returns:
        Groups that each have ``weight_decay``; empty ones are left out, and so are a module's frozen parameters.

    Source:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101, for the decay; leaving out biases
        and norms: He et al., "Bag of Tricks for Image Classification", CVPR 2019, arXiv:1812.01187, §3.1.
    """
    require(weight_decay >= 0, "weight_decay must be >= 0", weight_decay)
    halves = []
    for group in as_groups(parameters):
        for decays in (True, False):
            members = [p for p in group["params"] if (p.ndim >= 2) == decays]
            if members:
                halves.append({**group, "params": members, "weight_decay": weight_decay if decays else 0.0})
    return halves


def base_rate(group: Group) -> Any:
    """The learning rate that a schedule multiplies: the one that the optimizer was made with; a number, or a tensor where torch wants one."""
    return group.setdefault("initial_lr", group["lr"])


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Every group's learning rate becomes its :func:`base_rate` times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = base_rate(group) * factor


def as_groups(parameters: Parameters) -> list[Group]:
    if isinstance(parameters, nn.Module):
        parameters = [p for p in parameters.parameters() if p.requires_grad]
    given: list[Any] = list(parameters)
    return given if given and isinstance(given[0], dict) else [{"params": given}]
