"""Muon for a network's hidden matrices and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from components.optimizers.groups import Group
from components.validation import require, require_choice


class MuonWithAuxAdamW(Optimizer):
    r"""Muon's orthogonalised momentum for matrices, AdamW for biases, norms, kernels, embeddings and output layers.

    For a matrix *W* (A, B) with gradient *G*: :math:`M \leftarrow \mu M + (1 - \mu) G`, :math:`U = \mu M + (1 - \mu) G` (Nesterov),

    .. math:: W \leftarrow (1 - \eta\lambda)\, W - \eta\, s\, \mathrm{NS}_5(U), \qquad
              s = 0.2\sqrt{\max(A, B)}\ (\text{match\_rms\_adamw}) \quad\text{or}\quad \sqrt{\max(1, A/B)}\ (\text{original})

    with :math:`\mathrm{NS}_5` five Newton–Schulz iterations in bfloat16 towards the nearest orthogonal matrix. All else
    moves by :class:`torch.optim.AdamW`. The updates are torch's own, :class:`torch.optim.Muon` and ``AdamW``, bit for bit.

    Which parameters are Muon's: in a parameter group that says ``use_muon`` (as :func:`muon_groups` makes them), what it says;
    otherwise those with exactly two dimensions. torch's Muon takes nothing else, so convolution kernels go to AdamW.

    Every given group becomes up to two of :attr:`param_groups` (Muon's part, AdamW's part), each with its own ``lr``, which
    a learning-rate schedule scales together.

    Args:
        params: parameters, or parameter groups with options of their own (``lr`` and ``weight_decay`` then hold for both parts).
        lr: learning rate >= 0; default 1e-3, which with ``match_rms_adamw`` serves both parts.
        weight_decay: decoupled, >= 0, for both parts; default 0.1.
        momentum: :math:`\mu` in [0, 1); default 0.95.
        nesterov: default true.
        ns_steps: Newton–Schulz iterations, 1 to 99; default 5.
        adjust_lr_fn: ``match_rms_adamw`` (an update's root mean square is AdamW's, so its learning rate and decay carry over) or
            ``original`` (Jordan's; then use an ``lr`` near 0.02 and an ``adamw_lr``).
        adamw_lr: AdamW's learning rate; default: ``lr``.
        adamw_betas: default (0.9, 0.95).
        adamw_eps: default 1e-8.

    Raises:
        ValueError: an option out of its range, or ``use_muon`` for a parameter that has not two dimensions.

    Source:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, https://kellerjordan.github.io/posts/muon;
        ``match_rms_adamw``: Liu et al., "Muon is Scalable for LLM Training", 2025, arXiv:2502.16982; :class:`torch.optim.Muon`.
    """

    @staticmethod
    def groups(module: nn.Module, parameters: Iterable[nn.Parameter]) -> list[Group]:
        """How losskit hands this optimizer a task's parameters: see :func:`muon_groups`."""
        return muon_groups(module, parameters)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        adamw_lr: float | None = None,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
    ) -> None:
        require(lr >= 0, "lr (the learning rate) must be >= 0", lr)
        require(adamw_lr is None or adamw_lr >= 0, "adamw_lr must be >= 0", adamw_lr)
        require(weight_decay >= 0, "weight_decay must be >= 0", weight_decay)
        require(0 <= momentum < 1, "momentum must be in [0, 1)", momentum)
        require(1 <= ns_steps < 100, "ns_steps must be in [1, 99]", ns_steps)
        require(len(adamw_betas) == 2 and all(0 <= beta < 1 for beta in adamw_betas), "adamw_betas must be two numbers in [0, 1)", adamw_betas)
        require(adamw_eps >= 0, "adamw_eps must be >= 0", adamw_eps)
        require_choice("adjust_lr_fn", adjust_lr_fn, ("match_rms_adamw", "original"))
        self._muon_options = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        self._adamw_options = {"lr": lr if adamw_lr is None else adamw_lr, "betas": tuple(adamw_betas), "eps": adamw_eps}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._link()

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as its Muon part and its AdamW part."""
        group = {**param_group, "params": as_list(param_group["params"])}
        if "use_muon" in group:
            parts = {group["use_muon"]: group["params"]}
            flat = [tuple(p.shape) for p in parts.get(True, []) if p.ndim != 2]
            require(not flat, f"use_muon takes matrices, but a parameter has the shape {flat[0] if flat else ''}")
        else:
            parts = {flag: [p for p in group["params"] if (p.ndim == 2) == flag] for flag in (True, False)}
        for use_muon, parameters in parts.items():
            if parameters or not group["params"]:
                options = self._muon_options if use_muon else self._adamw_options
                super().add_param_group({**options, **group, "params": parameters, "use_muon": use_muon})
        if "_inner" in self.__dict__:
            self._link()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; ``closure`` (if any) computes the loss anew, once, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self._inner:
            optimizer.step()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_muon_options": self._muon_options, "_adamw_options": self._adamw_options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # also how Optimizer.load_state_dict puts in what it has read: new groups and a new state
        super().__setstate__(state)
        self._link()

    def _link(self) -> None:
        """Let torch's Muon and AdamW act on this optimizer's own groups and state: the dictionaries themselves, not copies."""
        self._inner: list[Optimizer] = []
        for cls, use_muon in ((Muon, True), (AdamW, False)):
            groups = [group for group in self.param_groups if group["use_muon"] == use_muon]
            if groups:
                inner = cls(groups)
                inner.state = self.state
                self._inner.append(inner)


def muon_groups(module: nn.Module, parameters: Iterable[nn.Parameter] | None = None) -> list[Group]:
    """Parameter groups that say ``use_muon``: true for the matrices of the module's hidden layers alone.

    Embeddings, and the linear layer that is registered last (the output layer), are AdamW's, as Muon's authors advise; so is
    everything that has not two dimensions or is not the module's (a loss's own parameters).

    Args:
        module: the network.
        parameters: what is to be optimised; default: the module's parameters that require a gradient.
    """
    chosen = [p for p in module.parameters() if p.requires_grad] if parameters is None else list(parameters)
    layers = list(module.modules())
    apart = [m.weight for m in layers if isinstance(m, nn.Embedding | nn.EmbeddingBag)] + [m.weight for m in layers if isinstance(m, nn.Linear)][-1:]
    hidden = {id(p) for p in module.parameters() if p.ndim == 2} - {id(p) for p in apart}
    groups = [{"params": [p for p in chosen if (id(p) in hidden) == flag], "use_muon": flag} for flag in (True, False)]
    return [group for group in groups if group["params"]]


def as_list(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)
