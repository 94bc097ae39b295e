r"""Several workers in one process, some of them faulty: what an aggregation rule is worth, tried on a small model.

    workers = Workers(model, inputs, target, workers=10, byzantine=2, attack="alie", rule="trimmed_mean")
    workers.run(200)
    workers.accuracy(test_inputs, test_target)

With a server (``rule`` is one of :data:`~components.averaging.aggregation.RULES`) all workers have one model; with ``rule="nna"`` each
has its own and mixes it with its neighbours'. All workers' gradients are one vectorised computation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from components.averaging.aggregation import RULES, Rule, nearest_neighbour_average
from components.models.base import split_output
from components.validation import require, require_choice

Attack = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(what the f attackers would have sent (f, d), what the honest send (h, d), random numbers) -> what the attackers send (f, d)."""

# -- attacks ------------------------------------------------------------------------------------------------------------


def sign_flip(own: Tensor, honest: Tensor, generator: torch.Generator, *, scale: float = 1.0) -> Tensor:
    """Each attacker sends the opposite of its own vector, times ``scale``."""
    return -scale * own


def little_is_enough(own: Tensor, honest: Tensor, generator: torch.Generator, *, z: float | None = None) -> Tensor:
    r"""ALIE: all attackers send the honest mean less *z* standard deviations of each coordinate, well inside the crowd.

    .. math:: \mu - z\,\sigma, \qquad z = \Phi^{-1}\Big(\frac{n - f - s}{n - f}\Big), \quad s = \lfloor n/2 \rfloor + 1 - f

    Args:
        own, honest, generator: as any attack.
        z: default: as above, the most with which some honest workers still stand further out.

    Source:
        Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019, arXiv:1902.06156.
    """
    count, faulty = len(own) + len(honest), len(own)
    if z is None:
        share = (count - faulty - (count // 2 + 1 - faulty)) / (count - faulty)
        z = NormalDist().inv_cdf(min(max(share, 0.5), 0.9999))
    deviation = honest.std(0) if len(honest) > 1 else torch.zeros_like(honest[0])
    return (honest.mean(0) - z * deviation).expand_as(own)


def inner_product(own: Tensor, honest: Tensor, generator: torch.Generator, *, scale: float = 1.1) -> Tensor:
    """IPM: all attackers send the opposite of the honest mean, times ``scale``. Xie, Koyejo, Gupta, "Fall of Empires", UAI 2019, arXiv:1903.03936."""
    return (-scale * honest.mean(0)).expand_as(own)


def random_vectors(own: Tensor, honest: Tensor, generator: torch.Generator, *, scale: float = 10.0) -> Tensor:
    """Random directions, ``scale`` times as long as the honest vectors are on average."""
    drawn = torch.randn(own.shape, generator=generator, dtype=own.dtype).to(own.device)
    return nn.functional.normalize(drawn, dim=1) * scale * honest.norm(dim=1).mean()


def honestly(own: Tensor, honest: Tensor, generator: torch.Generator) -> Tensor:
    """No attack on what is sent (``label_flip`` has acted on the data before)."""
    return own


ATTACKS: dict[str, Attack] = {
    "none": honestly,
    "sign_flip": sign_flip,
    "label_flip": honestly,
    "alie": little_is_enough,
    "ipm": inner_product,
    "random": random_vectors,
}
"""The attacks by name. ``label_flip``: the attackers learn class C - 1 - y for y, and send what they find."""

# -- workers ------------------------------------------------------------------------------------------------------------


class Workers:
    r"""Synchronous SGD on several workers with local momentum, some of them Byzantine, some crashing.

    .. math:: m_i \leftarrow \beta m_i + (1 - \beta)\, g_i, \qquad \theta \leftarrow \theta - \eta\,\mathrm{rule}(m_1, \dots, m_n)

    with a server; with ``rule="nna"``, where what is sent is :math:`\theta_i' = \theta_i - \eta m_i`, :math:`\theta_i \leftarrow \mathrm{NNA}_i(\theta')`.
    The Byzantine workers are the last ones, the crashing ones those before them. A crashed worker sends nothing more; what is not finite is not taken.
    An attack on models acts on what they differ by from the honest mean before the step.

    Args:
        model: without buffers (no batch normalisation) and without dropout; all workers start from its weights. It is not changed: :meth:`weights`.
        inputs: (N, …) training samples.
        target: (N,) or (N, …).
        workers: n; default 10.
        byzantine: attackers among them; default 0.
        crashed: workers that stop after ``crash_after`` steps; default 0.
        crash_after: default 0.
        attack: a name of :data:`ATTACKS`, or a function; default ``sign_flip``.
        rule: a name of :data:`~components.averaging.aggregation.RULES`, ``nna``, or a function of (vectors, faulty).
        faulty: *f* that the rule reckons with; default: as many as are Byzantine. Crashed workers are seen to be missing, and need not
            be counted.
        lr: :math:`\eta`; default 0.75. A function of the step is a schedule.
        momentum: :math:`\beta` in [0, 1); default 0.99, the authors'.
        weight_decay: L2; default 1e-4.
        batch_size: of each worker; default 25. ``None``: all that it has.
        heterogeneity: parameter of the Dirichlet distribution of each class's samples over the workers; default ``None``: samples are dealt evenly.
        asynchronous: with ``nna``, each worker mixes when it has n - f models, its own and random others; default false.
        loss: (outputs, target) -> scalar; default cross-entropy.
        seed: of everything that is drawn.

    Raises:
        ValueError: an argument out of its range; a model with buffers.

    Source:
        Farhadkhani et al., "Robust Collaborative Learning with Linear Gradient Overhead", ICML 2023, arXiv:2209.10931; defaults of the authors' runs
        (n = 26, f = 5, 600 steps, the rate divided by 1 + t/50 every 50 steps).
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        target: Tensor,
        *,
        workers: int = 10,
        byzantine: int = 0,
        crashed: int = 0,
        crash_after: int = 0,
        attack: str | Attack = "sign_flip",
        rule: Literal["nna"] | str | Rule = "nna",
        faulty: int | None = None,
        lr: float | Callable[[int], float] = 0.75,
        momentum: float = 0.99,
        weight_decay: float = 1e-4,
        batch_size: int | None = 25,
        heterogeneity: float | None = None,
        asynchronous: bool = False,
        loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
        seed: int = 0,
    ) -> None:
        require(workers >= 1, "workers must be >= 1", workers)
        require(byzantine >= 0 and crashed >= 0 and byzantine + crashed < workers, "byzantine and crashed must leave an honest worker", (byzantine, crashed))
        require(2 * (byzantine if faulty is None else faulty) < workers, "faulty must be below half of the workers", byzantine if faulty is None else faulty)
        require(0 <= momentum < 1, "momentum must be in [0, 1)", momentum)
        require(batch_size is None or batch_size >= 1, "batch_size must be >= 1, or None", batch_size)
        require(len(inputs) == len(target) >= workers, f"inputs and target must be as long, with a sample for each of {workers} workers", len(inputs))
        buffers = [name for name, _ in model.named_buffers()]
        require(not buffers, "model must have no buffers: every worker would need its own", buffers)
        if isinstance(attack, str):
            require_choice("attack", attack, ATTACKS)
        if isinstance(rule, str):
            require_choice("rule", rule, [*RULES, "nna"])
        self.count, self.byzantine, self.crashed, self.crash_after = workers, byzantine, crashed, crash_after
        self.attack = ATTACKS[attack] if isinstance(attack, str) else attack
        self.rule: Rule | None = None if rule == "nna" else RULES[rule] if isinstance(rule, str) else rule
        self.faulty = byzantine if faulty is None else faulty
        self.lr, self.momentum, self.weight_decay, self.batch_size, self.asynchronous = lr, momentum, weight_decay, batch_size, asynchronous
        self.step_number = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._model, self._loss = model, loss
        self._names = [name for name, _ in model.named_parameters()]
        self._shapes = [p.shape for p in model.parameters()]
        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        self.models = start.repeat(workers, 1)  # (n, d)
        self.momenta = torch.zeros_like(self.models)
        shares = deal(target, workers, heterogeneity, self._generator)
        self.shares = shares
        self._inputs, self._target = inputs, target
        self._flips = attack == "label_flip"
        self._highest = int(target.max()) if self._flips else 0
        self._gradients = vmap(grad(self._loss_of), in_dims=(0, 0, 0, 0))

    @property
    def honest(self) -> list[int]:
        """The workers that are there and follow the rules, as things stand."""
        return [worker for worker in self._present() if worker < self.count - self.byzantine]

    def step(self) -> None:
        """One synchronous step of all workers."""
        inputs, target, mask = self._batches()
        gradients = self._gradients(self.models, inputs, target, mask) + self.weight_decay * self.models
        self.momenta = self.momentum * self.momenta + (1 - self.momentum) * gradients
        rate = self.lr(self.step_number) if callable(self.lr) else self.lr
        present, honest = self._present(), self.honest
        faulty = min(self.faulty, (len(present) - 1) // 2)
        if self.rule is not None:
            sent = self._sent(self.momenta[present], len(honest))
            taken = sent[torch.isfinite(sent).all(1)]
            lost = len(sent) - len(taken)
            require(len(taken) >= 1, "no worker has sent anything finite: the run has diverged")
            aggregate = self.rule(taken, min(max(faulty - lost, 0), (len(taken) - 1) // 2))
            self.models = self.models - rate * aggregate
        else:
            base = self.models[honest].mean(0)
            moved = self.models[present] - rate * self.momenta[present]
            sent = base + self._sent(moved - base, len(honest))
            sent = torch.where(torch.isfinite(sent).all(1, keepdim=True), sent, base + 1e30)  # far from all, so nobody's neighbour
            self.models[present] = nearest_neighbour_average(sent, faulty, self._arrivals(len(present), faulty) if self.asynchronous else None)
        self.step_number += 1

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def weights(self, worker: int | None = None) -> dict[str, Tensor]:
        """A worker's weights by name; default: the mean of the honest workers'."""
        return self._unflatten(self.models[self.honest].mean(0) if worker is None else self.models[worker])

    def loss(self, inputs: Tensor, target: Tensor) -> float:
        """The loss of the honest workers' mean model."""
        with torch.no_grad():
            return float(self._loss(self._outputs(inputs), target))

    def accuracy(self, inputs: Tensor, target: Tensor) -> float:
        """The share of samples that the honest workers' mean model has right."""
        with torch.no_grad():
            return float((self._outputs(inputs).argmax(1) == target).double().mean())

    # -- inside -------------------------------------------------------------------------------------------------------
    def _outputs(self, inputs: Tensor) -> Tensor:
        return split_output(functional_call(self._model, self.weights(), (inputs,))).output

    def _present(self) -> list[int]:
        first = self.count - self.byzantine - self.crashed
        gone = range(first, first + self.crashed) if self.step_number >= self.crash_after else range(0)
        return [worker for worker in range(self.count) if worker not in gone]

    def _sent(self, own: Tensor, honest: int) -> Tensor:
        """What arrives of the vectors that all present workers have: the attackers are the last."""
        if honest == len(own):
            return own
        return torch.cat([own[:honest], self.attack(own[honest:], own[:honest], self._generator)])

    def _arrivals(self, present: int, faulty: int) -> Tensor:
        """(n, n) bool: of the others, n - f - 1 random ones each."""
        order = torch.rand(present, present, generator=self._generator).fill_diagonal_(-1.0).argsort(dim=1).argsort(dim=1)
        return (order < present - faulty).to(self.models.device)

    def _batches(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (n, B, …), targets (n, B) and which of them count (n, B): small shares are filled up."""
        size = max(len(share) for share in self.shares) if self.batch_size is None else self.batch_size
        chosen, mask = [], []
        for share in self.shares:
            if self.batch_size is None:
                filled = torch.cat([share, share[:1].expand(size - len(share))])
                mask.append(torch.arange(size) < len(share))
            else:
                filled = share[torch.randint(len(share), (size,), generator=self._generator)]
                mask.append(torch.ones(size, dtype=torch.bool))
            chosen.append(filled)
        index = torch.stack(chosen)
        target = self._target[index]
        if self._flips:
            target = torch.cat([target[: self.count - self.byzantine], self._highest - target[self.count - self.byzantine :]])
        return self._inputs[index], target, torch.stack(mask).to(self._inputs.device)

    def _loss_of(self, flat: Tensor, inputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        outputs = split_output(functional_call(self._model, self._unflatten(flat), (inputs,))).output
        each = vmap(lambda output, wanted: self._loss(output[None], wanted[None]))(outputs, target)
        return (each * mask).sum() / mask.sum()

    def _unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in self._shapes])
        return {name: part.view(shape) for name, part, shape in zip(self._names, parts, self._shapes, strict=True)}


def deal(target: Tensor, workers: int, heterogeneity: float | None, generator: torch.Generator) -> list[Tensor]:
    """Indices of each worker's samples: dealt evenly, or each class by a draw from a Dirichlet distribution; none is left without."""
    if heterogeneity is None:
        return list(torch.randperm(len(target), generator=generator).tensor_split(workers))
    require(0 < heterogeneity < math.inf, "heterogeneity must be a finite number > 0, or None", heterogeneity)
    shares: list[list[Any]] = [[] for _ in range(workers)]
    for label in target.unique():
        members = (target == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        # a Dirichlet draw: normalised gamma variates
        parts = torch._standard_gamma(torch.full((workers,), heterogeneity, dtype=torch.float64), generator=generator)
        edges = ((parts / parts.sum()).cumsum(0) * len(members)).round().long().clamp(max=len(members)).tolist()
        for worker, (first, last) in enumerate(zip([0, *edges[:-1]], [*edges[:-1], len(members)], strict=True)):
            shares[worker] += members[first:last].tolist()
    for share in shares:
        if not share:  # from whoever has most
            share.append(max(shares, key=len).pop())
    return [torch.tensor(share) for share in shares]
