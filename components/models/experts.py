"""Mixture of experts: a layer of which each sample uses a few parts, chosen by the samples or handed out by transport."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.models.base import ModelOutput
from components.models.layers import check_inputs
from components.transport import largest, sparse_transport
from components.validation import require, require_choice


class MixtureOfExperts(nn.Module):
    r"""A hidden layer, a layer of experts beside it, and an output layer.

    .. math:: h = \mathrm{relu}(W x + c), \qquad y = V \Big( h + \sum_e M_{ie}\, \operatorname{softmax}(R h)_e\, B_e\, \mathrm{relu}(A_e h) \Big) + d

    *M* says which expert sees which sample. ``router="top_k"``: the ``chosen`` best of each sample. ``router="sparse_transport"``: of the plan that
    moves all N samples (1 each) to the E experts (N / E each) at the cost of minus the router's scores, with at most
    :math:`k = \lceil \text{chosen} \cdot N / E \rceil` samples an expert (:mod:`components.transport`), the k largest of each: experts are
    equally loaded by construction, and what happens to a sample depends on its batch, in evaluation too.

    All experts are computed for all samples and masked: right for a study of routing, not for speed.

    Args:
        input_shape: shape of one input, without the batch.
        num_outputs: outputs.
        experts: E >= 2.
        hidden: width of *h*.
        expert_hidden: width within an expert.
        router: top_k | sparse_transport.
        chosen: experts a sample, in 1 … E; for transport on average.
        gamma: of the transport's quadratic penalty, > 0.
        iterations: of its solver.

    Shapes:
        inputs (N, \*input_shape), floating point; output (N, num_outputs); features (N, hidden), what the output layer sees.

    Raises:
        ValueError: if an option is out of its range, or the inputs don't have ``input_shape``.

    Source:
        Routing by transport with cardinality constraints: Liu, Puigcerver and Blondel, "Sparsity-Constrained Optimal Transport", ICLR 2023,
        arXiv:2209.15466, section 6; by the samples: Shazeer et al., ICLR 2017, arXiv:1701.06538. The small network around it is ours.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        experts: int = 8,
        hidden: int = 32,
        expert_hidden: int = 16,
        router: str = "top_k",
        chosen: int = 1,
        gamma: float = 1.0,
        iterations: int = 5,
    ) -> None:
        super().__init__()
        self.input_shape = tuple(int(size) for size in input_shape)
        require(num_outputs >= 1, "num_outputs must be >= 1", num_outputs)
        require(experts >= 2, "experts must be >= 2", experts)
        require(hidden >= 1, "hidden must be >= 1", hidden)
        require(expert_hidden >= 1, "expert_hidden must be >= 1", expert_hidden)
        require_choice("router", router, ("top_k", "sparse_transport"))
        require(1 <= chosen <= experts, f"chosen must be in 1 … {experts} (experts)", chosen)
        require(gamma > 0, "gamma must be > 0", gamma)
        require(iterations >= 1, "iterations must be >= 1", iterations)
        self.kind, self.chosen, self.gamma, self.iterations = router, chosen, gamma, iterations
        self.feature_dim = hidden
        self.body = nn.Linear(math.prod(self.input_shape), hidden)
        self.router = nn.Linear(hidden, experts, bias=False)
        self.inner = nn.Parameter(torch.randn(experts, hidden, expert_hidden) * math.sqrt(2 / hidden))
        self.outer = nn.Parameter(torch.randn(experts, expert_hidden, hidden) * math.sqrt(1 / expert_hidden))
        self.head = nn.Linear(hidden, num_outputs)

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "mixture_of_experts", "inputs", self.input_shape)
        hidden = F.relu(self.body(inputs.flatten(1)))
        scores = self.router(hidden)
        gates = scores.softmax(1) * self.routes(scores).to(scores.dtype)
        said = torch.einsum("neh,ehd->ned", F.relu(torch.einsum("nd,edh->neh", hidden, self.inner)), self.outer)
        features = hidden + (gates.to(said.dtype).unsqueeze(2) * said).sum(1)
        return ModelOutput(self.head(features), features)

    def routes(self, scores: Tensor) -> Tensor:
        """(N, E) of 0 and 1: which expert sees which sample."""
        scores = scores.detach().float()
        if self.kind == "top_k":
            return largest(scores.T, self.chosen).T
        samples, experts = scores.shape
        ones = scores.new_ones(samples)
        capacity = scores.new_full((experts,), samples / experts)
        most = max(math.ceil(self.chosen * samples / experts), 1)
        plan = sparse_transport(-scores, ones, capacity, k=most, gamma=self.gamma, iterations=self.iterations).plan
        return largest(plan, most) * (plan > 0)
