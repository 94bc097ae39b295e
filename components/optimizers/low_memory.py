"""Adam with a fraction of its state: moments of a part of each gradient only, and a rule without state for the rest (FRUGAL, Fira)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from components.optimizers.adaptive_moments import average, average_squares, decay, descend
from components.optimizers.base import GradientOptimizer, State, at_least_float32, column, require_options, zeros
from components.optimizers.groups import Group
from components.optimizers.muon import as_list, muon_groups
from components.validation import require, require_choice

PROJECTIONS = ("block", "columns", "rows", "entries", "svd", "random")


class SubspaceOptimizer(GradientOptimizer):
    """Groups say whether their matrices are ``projectable``; of groups that do not say, the parameters with two dimensions are."""

    exact_state = frozenset({"index", "residual_norm"})

    @staticmethod
    def groups(module: nn.Module, parameters: Iterable[nn.Parameter]) -> list[Group]:
        """How losskit hands this optimizer a task's parameters: projectable are the hidden layers' matrices.

        Embeddings and the linear layer that is registered last (the output layer) are not, as the authors advise.
        """
        return [{"params": group["params"], "projectable": group["use_muon"]} for group in muon_groups(module, parameters)]

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as its projectable part and the rest."""
        group = {**param_group, "params": as_list(param_group["params"])}
        if "projectable" in group:
            flat = [tuple(p.shape) for p in group["params"] if group["projectable"] and p.ndim != 2]
            require(not flat, f"projectable takes matrices, but a parameter has the shape {flat[0] if flat else ''}")
            super().add_param_group(group)
            return
        for flag in (True, False):
            members = [p for p in group["params"] if (p.ndim == 2) == flag]
            if members or not group["params"]:
                super().add_param_group({**group, "params": members, "projectable": flag})


class FRUGAL(SubspaceOptimizer):
    r"""AdamW on a changing fraction of the weights and signSGD on the others: every weight moves, Adam's state is kept for a few.

    Of a projectable gradient *G*, a part :math:`G_D = UDG` goes to AdamW and the rest to a rule without state:

    .. math:: W \leftarrow (1 - \eta w) W - \eta\, U\,\mathrm{Adam}(DG) - \eta\, c\, \mathrm{sign}(G - UDG)

    Every ``update_gap`` steps another part is chosen and its moments start anew (the old ones belong to other directions). What is not
    projectable (embeddings, norms, biases, the output layer: see :meth:`groups`) is AdamW's.

    Memory: ``density`` × two moments, and an index a column or row, one 8-byte index an entry, or a projector of rank *r* × the
    shorter side. Drawing a part and, for ``svd``, decomposing the gradient is the only thing that waits for the device, once in ``update_gap``
    steps. The draws depend on ``seed`` and the step alone: a resumed run makes the same.

    Args:
        params: parameters, or parameter groups with ``lr``, ``weight_decay`` … and perhaps ``projectable`` of their own.
        lr: :math:`\eta` >= 0; default 1e-3.
        betas: default (0.9, 0.999).
        eps: default 1e-8.
        weight_decay: decoupled, >= 0; default 0.
        density: fraction of the projectable weights that AdamW gets, in [0, 1]; default 0.25.
        update_gap: steps with the same part, >= 1; default 200.
        projection: ``block`` (whole matrices: a set with about ``density`` of all projectable
            weights, at least one; the paper's), ``columns``, ``rows`` or
            ``entries`` (random ones of each matrix), ``svd`` (the gradient's leading singular vectors, as GaLore) or ``random`` (orthonormal).
        block_order: of ``block``, which matrices follow: ``random`` (default), ``ascending`` or ``descending`` (in turn).
        state_free: the rest's rule: ``sign`` (default), ``sgd`` or ``none``.
        state_free_scale: *c* >= 0; default 1 (pretraining; the authors fine-tune with 0.1).
        reset: forget the moments when the part changes; default true. A matrix that leaves ``block``'s set loses them in any case.
        seed: of the random parts; default 0.

    Raises:
        ValueError: an option out of its range, ``projectable`` for a parameter that has not two dimensions, a sparse or complex gradient.

    Source:
        Zmushko, Beznosikov, Takáč and Horváth, "FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable Training",
        ICML 2025, arXiv:2411.07837, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        density: float = 0.25,
        update_gap: int = 200,
        projection: str = "block",
        block_order: str = "random",
        state_free: str = "sign",
        state_free_scale: float = 1.0,
        reset: bool = True,
        seed: int = 0,
    ) -> None:
        require_options(lr, betas, eps, weight_decay)
        require(len(betas) == 2, "betas must be two numbers", list(betas))
        require(0 <= density <= 1, "density must be in [0, 1]", density)
        require(update_gap >= 1, "update_gap must be >= 1", update_gap)
        require_choice("projection", projection, PROJECTIONS)
        require_choice("block_order", block_order, ("random", "ascending", "descending"))
        require_choice("state_free", state_free, ("sign", "sgd", "none"))
        require(state_free_scale >= 0, "state_free_scale must be >= 0", state_free_scale)
        options = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "state_free": state_free, "reset": reset}
        common = {"density": density, "update_gap": update_gap, "projection": projection, "block_order": block_order, "seed": seed}
        super().__init__(params, options | {"state_free_scale": state_free_scale} | common)

    def start(self, group: Group, parameter: Tensor) -> State:
        return {} if group["projectable"] else fresh_moments(parameter)

    def update(self, group: Group, step: int, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        decay(parameters, group["lr"] * group["weight_decay"])
        if not group["projectable"]:
            self.adam(group, parameters, gradients, states)
            return
        if (step - 1) % group["update_gap"] == 0:
            self.choose(group, (step - 1) // group["update_gap"], parameters, gradients, states)
        if group["projection"] == "block":
            active = [i for i, state in enumerate(states) if "exp_avg" in state]
            free = [i for i, state in enumerate(states) if "exp_avg" not in state]
            if active:
                self.adam(group, [parameters[i] for i in active], [gradients[i] for i in active], [states[i] for i in active])
            if free and group["state_free"] != "none":
                rest = [gradients[i] for i in free]
                rest = list(torch._foreach_sign(rest)) if group["state_free"] == "sign" else rest
                torch._foreach_add_([parameters[i] for i in free], rest, alpha=-group["lr"] * group["state_free_scale"])
            return
        parts = [down(g, state) for g, state in zip(gradients, states, strict=True)]
        kept = [(part, state) for part, state in zip(parts, states, strict=True) if part is not None]
        changes = [torch.zeros_like(part) for part, _ in kept]
        if kept:
            self.adam(group | {"lr": -1.0}, changes, [part for part, _ in kept], [state for _, state in kept])
        remaining = iter(changes)
        steps = [None if part is None else next(remaining) for part in parts]
        directions = [self.whole(group, *each) for each in zip(gradients, parts, steps, states, strict=True)]
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])

    @staticmethod
    def adam(group: Group, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        """AdamW's step, without the decay; states that have made equally many steps since they were reset go together."""
        together: dict[int, list[int]] = {}
        for i, state in enumerate(states):
            state["age"] += 1
            together.setdefault(state["age"], []).append(i)
        beta1, beta2 = group["betas"]
        for age, members in together.items():
            chosen, some = [states[i] for i in members], [gradients[i] for i in members]
            first, second = column(chosen, "exp_avg"), column(chosen, "exp_avg_sq")
            average(first, some, beta1)
            average_squares(second, some, beta2)
            descend([parameters[i] for i in members], first, second, group["lr"] / (1 - beta1**age), 1 - beta2**age, group["eps"])

    def choose(self, group: Group, turn: int, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        """New parts of projectable matrices, and their moments."""
        matrices = [p for each in self.param_groups if each["projectable"] for p in each["params"]]
        places = {id(p): place for place, p in enumerate(matrices)}
        active = self.active(group, turn, [p.numel() for p in matrices]) if group["projection"] == "block" else set()
        for p, g, state in zip(parameters, gradients, states, strict=True):
            place = places[id(p)]
            if group["projection"] == "block":
                kept: Tensor | None = p if place in active else None
            else:
                state.update(choose_part(group["projection"], group["density"], g, torch.Generator().manual_seed(draw_seed(group["seed"], turn, place))))
                kept = down(g, state)
            if kept is None:
                for name in ("exp_avg", "exp_avg_sq", "age"):
                    state.pop(name, None)
            elif group["reset"] or "exp_avg" not in state:
                state.update(fresh_moments(kept))

    @staticmethod
    def active(group: Group, turn: int, sizes: list[int]) -> set[int]:
        """Which of all projectable matrices AdamW has in this turn: about ``density`` of their weights, but at least one."""
        if group["density"] == 0:
            return set()
        goal, count, start, chosen = group["density"] * sum(sizes), len(sizes), 0, list[int]()
        for each in range(turn if group["block_order"] == "random" else 0, turn + 1):  # in turn: where the sets before have ended
            if group["block_order"] == "random":
                order = torch.randperm(count, generator=torch.Generator().manual_seed(draw_seed(group["seed"], each, -1))).tolist()
            else:
                order = [(start + i) % count for i in range(count)]
            chosen, reached = [], 0
            for place in order:
                size = sizes[place if group["block_order"] != "descending" else count - 1 - place]
                if chosen and reached + size / 2 > goal:  # nearer to the goal without it
                    break
                chosen.append(place)
                reached += size
            start = (start + len(chosen)) % count
        return {count - 1 - place for place in chosen} if group["block_order"] == "descending" else set(chosen)

    @staticmethod
    def whole(group: Group, gradient: Tensor, part: Tensor | None, step: Tensor | None, state: State) -> Tensor:
        r""":math:`U\,\text{step} + c\,\text{free}(G - UDG)`."""
        scale, rule = group["state_free_scale"], group["state_free"]
        rest = gradient
        if part is not None and "projector" in state:
            rest = gradient - project_up(part, state["projector"])
        free = torch.zeros_like(rest) if rule == "none" else rest.sign() * scale if rule == "sign" else rest * scale
        if part is None or step is None:
            return free
        if "projector" in state:
            return free + project_up(step, state["projector"])
        if "axis" in state:
            return free.index_copy_(state["axis"], state["index"], step)
        return free.contiguous().view(-1).index_copy_(0, state["index"], step).view(free.shape)


class Fira(SubspaceOptimizer):
    r"""AdamW in a low-rank subspace, and the rest of the gradient scaled as Adam scales what lies in it: full-rank steps, low-rank state.

    Of a gradient *G* (m, n) with :math:`m \ge n` (otherwise transposed), *P* (r, n) its leading right singular vectors of every
    ``update_gap``-th step, and :math:`R = G P^\top`:

    .. math:: \psi &= \frac{M}{\sqrt V + \epsilon} \ \text{(Adam's moments of } R), \qquad
              S_{i\cdot} = \frac{\lVert \psi_{i\cdot}\rVert}{\lVert R_{i\cdot}\rVert}\, (G - RP)_{i\cdot} \\
              S &\leftarrow S \min\Big\{1, \frac{\gamma \lVert S_\text{before}\rVert}{\lVert S\rVert}\Big\}, \qquad
              W \leftarrow (1 - \eta w)\Big(W - \eta\, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}\,(\alpha\, \psi P + S)\Big)

    The limiter on the growth of *S* stops the loss from jumping when the subspace changes. Moments are not reset then. After a residual of
    exactly 0 the limiter lets *S* grow from :math:`10^{-8}` only, as in the authors' code. What is not projectable moves by the same
    rule with :math:`P = I`: Adam with :math:`\epsilon` beside the uncorrected root.

    State of a matrix: 2 r max(m, n) moments, r min(m, n) projector, one scalar; Adam has 2 m n.

    Args:
        params: parameters, or parameter groups with ``lr``, ``weight_decay`` … and perhaps ``projectable`` of their own.
        lr: :math:`\eta` >= 0; default 1e-3.
        rank: *r* >= 1; at most the shorter side is used. Default 128.
        update_gap: steps between decompositions, >= 1; default 200. These wait for the device; no other step does.
        alpha: :math:`\alpha` >= 0; default 1 (with lr 0.01, the authors take 0.25).
        betas: default (0.9, 0.999).
        eps: default 1e-6.
        weight_decay: decoupled, after the step; >= 0; default 0.
        growth_limit: :math:`\gamma` >= 1; default 1.01.
        scaling: ``vector`` (each row its own factor, as above) or ``matrix`` (one for all).
        released_residual: take :math:`G - \alpha RP` for the residual, as the released code does (for :math:`\alpha \ne 1` another thing than
            the paper's); default false.
        products: ``full`` (default), or ``bfloat16``: take the two products with *P*, which are most of a step, with 8 bits of mantissa. The
            moments and the residual's own part stay in full precision.

    Raises:
        ValueError: an option out of its range, ``projectable`` for a parameter that has not two dimensions, a sparse or complex gradient.

    Source:
        Chen, Feng, Li, Lai, Yue, Yuan and Wang, "Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?", 2024,
        arXiv:2410.01623, algorithm 1; https://github.com/xichen-fy/Fira.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        rank: int = 128,
        update_gap: int = 200,
        alpha: float = 1.0,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        growth_limit: float = 1.01,
        scaling: str = "vector",
        released_residual: bool = False,
        products: str = "full",
    ) -> None:
        require_options(lr, betas, eps, weight_decay)
        require(len(betas) == 2, "betas must be two numbers", list(betas))
        require(rank >= 1, "rank must be >= 1", rank)
        require(update_gap >= 1, "update_gap must be >= 1", update_gap)
        require(alpha >= 0, "alpha must be >= 0", alpha)
        require(growth_limit >= 1, "growth_limit must be >= 1", growth_limit)
        require_choice("scaling", scaling, ("vector", "matrix"))
        require_choice("products", products, ("full", "bfloat16"))
        options = {"lr": lr, "rank": rank, "update_gap": update_gap, "alpha": alpha, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options | {"growth_limit": growth_limit, "scaling": scaling, "released_residual": released_residual, "products": products})

    def start(self, group: Group, parameter: Tensor) -> State:
        if not group["projectable"]:
            return {"exp_avg": zeros(parameter), "exp_avg_sq": zeros(parameter)}
        rows, columns = parameter.shape
        rank = min(group["rank"], rows, columns)
        reduced = parameter.new_zeros((rows, rank) if rows >= columns else (rank, columns))
        return {"exp_avg": reduced, "exp_avg_sq": torch.zeros_like(reduced)}

    def update(self, group: Group, step: int, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        reduced = gradients
        if group["projectable"]:
            if (step - 1) % group["update_gap"] == 0:
                for g, state in zip(gradients, states, strict=True):
                    state["projector"] = leading_directions(g, group["rank"])
            reduced = [project_down(g, state["projector"], group["products"]) for g, state in zip(gradients, states, strict=True)]
        first, second = column(states, "exp_avg"), column(states, "exp_avg_sq")
        beta1, beta2 = group["betas"]
        average(first, reduced, beta1)
        average_squares(second, reduced, beta2)
        roots = list(torch._foreach_sqrt(second))
        torch._foreach_add_(roots, group["eps"])
        steps = list(torch._foreach_div(first, roots))
        if group["projectable"]:
            steps = [self.whole(group, *each) for each in zip(gradients, reduced, steps, states, strict=True)]
        torch._foreach_add_(parameters, steps, alpha=-group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step))
        decay(parameters, group["lr"] * group["weight_decay"])

    @staticmethod
    def whole(group: Group, gradient: Tensor, reduced: Tensor, step: Tensor, state: State) -> Tensor:
        r""":math:`\alpha\,\psi P + S`, its residual limited.

        With one product less than it is written: as *P* is orthonormal, :math:`\lVert (G - RP)_{i\cdot}\rVert^2 = \lVert G_{i\cdot}\rVert^2 -
        \lVert R_{i\cdot}\rVert^2`, and :math:`\alpha\,\psi P + \phi(G - RP) = \phi G + (\alpha\psi - \phi R) P`.
        """
        alpha, taken = group["alpha"], group["alpha"] if group["released_residual"] else 1.0
        across = 1 if gradient.shape[0] >= gradient.shape[1] else 0
        whole, part, moved = (norms(each, across) for each in (gradient, reduced, step))
        left = whole.square() - taken * (2 - taken) * part.square()
        left = torch.where(left > 8 * torch.finfo(gradient.dtype).eps * whole.square(), left, torch.zeros_like(left))  # below, it is rounding
        factor = moved / (part + 1e-8) if group["scaling"] == "vector" else moved.norm() / (part.norm() + 1e-8)
        factor = torch.where(left > 0, factor, torch.zeros_like(left))
        norm = (factor.square() * left).sum().sqrt()
        if "residual_norm" in state:
            limiter = (norm / (state["residual_norm"] + 1e-8)).clamp(min=group["growth_limit"]) / group["growth_limit"]
            factor, norm = factor / limiter, norm / limiter
        state["residual_norm"] = norm
        factor = factor.to(gradient.dtype)
        back = (step * alpha).sub_(reduced * (factor * taken))
        return project_up(back, state["projector"], group["products"]).addcmul_(gradient, factor)


# -- parts of a matrix ------------------------------------------------------------------------------------------------------
def choose_part(projection: str, density: float, gradient: Tensor, generator: torch.Generator) -> State:
    """What keeps ``density`` of a gradient: ``index`` along ``axis``, ``index`` into all entries, or a ``projector``. Empty: nothing is kept."""
    rows, columns = gradient.shape
    of = {"columns": columns, "rows": rows, "entries": rows * columns}.get(projection, min(rows, columns))
    count = 0 if density == 0 else max(1, round(density * of))
    if count == 0:
        return {}
    if projection == "svd":
        return {"projector": leading_directions(gradient, count)}
    if projection == "random":
        basis = torch.linalg.qr(torch.randn(of, count, generator=generator, dtype=torch.float64))[0].to(gradient)
        return {"projector": basis.mT.contiguous() if rows >= columns else basis}
    index = torch.randperm(of, generator=generator)[:count].sort().values.to(gradient.device)
    return {"index": index} if projection == "entries" else {"index": index, "axis": 1 if projection == "columns" else 0}


def leading_directions(gradient: Tensor, rank: int) -> Tensor:
    """The leading singular vectors of the shorter side: (r, n) of a tall matrix, (m, r) of a wide one."""
    left, _, right = torch.linalg.svd(gradient.to(at_least_float32(gradient)), full_matrices=False)
    tall = gradient.shape[0] >= gradient.shape[1]
    return (right[:rank] if tall else left[:, :rank]).to(gradient.dtype).contiguous()


def project_down(gradient: Tensor, projector: Tensor, products: str = "full") -> Tensor:
    return product(gradient, projector.mT, products) if gradient.shape[0] >= gradient.shape[1] else product(projector.mT, gradient, products)


def project_up(reduced: Tensor, projector: Tensor, products: str = "full") -> Tensor:
    """The way back. (m, r) @ (r, n) of a tall matrix; of a wide one, (m, r) @ (r, n) too, but the projector is the left factor."""
    return product(reduced, projector, products) if reduced.shape[1] == projector.shape[0] else product(projector, reduced, products)


def product(left: Tensor, right: Tensor, products: str) -> Tensor:
    if products == "full":
        return left @ right
    return (left.to(torch.bfloat16) @ right.to(torch.bfloat16)).to(left.dtype)


def norms(matrix: Tensor, across: int) -> Tensor:
    """Of each row (1) or column (0), in float32 or better, with the dimension kept."""
    dtype = at_least_float32(matrix)
    if across == 0 and matrix.device.type == "cpu":  # vector_norm is seven times as slow over columns there
        return matrix.to(dtype).square().sum(0, keepdim=True).sqrt()
    return torch.linalg.vector_norm(matrix, dim=across, keepdim=True, dtype=dtype)


def down(gradient: Tensor, state: State) -> Tensor | None:
    """The part of a gradient that a state keeps."""
    if "projector" in state:
        return project_down(gradient, state["projector"])
    if "axis" in state:
        return gradient.index_select(state["axis"], state["index"])
    return gradient.reshape(-1).index_select(0, state["index"]) if "index" in state else None


def fresh_moments(like: Tensor) -> State:
    return {"exp_avg": zeros(like), "exp_avg_sq": zeros(like), "age": 0}


def draw_seed(seed: int, turn: int, place: int) -> int:
    """One seed for each turn and place, so that a draw needs no memory of the draws before."""
    return (seed * 1_000_003 + turn * 7_919 + place + 1) % 2**63
