"""The transformer: blocks that attend over a sequence, rotary positions, and a causal language model made of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from components.models.base import ModelOutput
from components.models.layers import check_inputs
from components.validation import require


class TransformerLM(nn.Module):
    r"""A causal transformer that predicts the next token.

    Pre-norm blocks (RMSNorm, attention, RMSNorm, GELU layer of 4 ``width``) with rotary positions and without biases:

    .. math:: x \leftarrow x + \mathrm{attention}(\mathrm{norm}(x)), \qquad x \leftarrow x + \mathrm{mlp}(\mathrm{norm}(x)), \qquad
              z = W\,\mathrm{norm}(x)

    with :math:`W` the embedding's own matrix where ``tie_weights``. A loss that wants no logits in memory takes :meth:`hidden` and
    :attr:`output_weight`. Weights start from N(0, 0.02²), those that write into the residual stream from N(0, 0.02² / (2 depth)).

    Args:
        vocab_size: V, number of tokens.
        sequence_length: longest sequence that it will see.
        width: D, size of the hidden states.
        depth: blocks.
        num_heads: attention heads; must divide ``width`` into even sizes.
        mlp_ratio: hidden size of the block's GELU layer, over ``width``.
        dropout: probability, in [0, 1), on attention weights and on what is added to the residual stream.
        tie_weights: the output layer is the embedding's matrix.
        qk_norm: RMS-normalise queries and keys of each head, so that attention logits stay bounded.
        rope_base: the slowest rotary wavelength is about 2π ``rope_base`` positions.

    Shapes:
        inputs (N, T) token indices, long, T <= sequence_length; output (N, V, T), a view with the class dimension where
        :func:`torch.nn.functional.cross_entropy` wants it; features (N, T, D), the hidden states before the output layer.

    Raises:
        ValueError: if an option is out of its range, the inputs are no token indices or longer than ``sequence_length``.

    Source:
        Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762; pre-norm and initialisation: Radford et al., "Language
        Models are Unsupervised Multitask Learners" (GPT-2), 2019; rotary positions: Su et al., "RoFormer", 2021, arXiv:2104.09864;
        RMSNorm: Zhang and Sennrich, 2019, arXiv:1910.07467; weight tying: Press and Wolf, 2016, arXiv:1608.05859;
        query-key normalisation: Henry et al., 2020, arXiv:2010.04245; by a normalisation layer: Dehghani et al., 2023, arXiv:2302.05442.
    """

    def __init__(
        self,
        vocab_size: int,
        sequence_length: int,
        *,
        width: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        tie_weights: bool = True,
        qk_norm: bool = False,
        rope_base: float = 10000.0,
    ) -> None:
        super().__init__()
        require(vocab_size >= 1, "vocab_size must be >= 1", vocab_size)
        require(sequence_length >= 1, "sequence_length must be >= 1", sequence_length)
        require(depth >= 1, "depth must be >= 1", depth)
        require(num_heads >= 1, "num_heads must be >= 1", num_heads)
        require(width >= 1 and width % (2 * num_heads) == 0, f"width must be a multiple of 2 num_heads = {2 * num_heads} (rotary positions turn pairs)", width)
        self.sequence_length = sequence_length
        self.feature_dim = width
        self.embedding = nn.Embedding(vocab_size, width)
        self.dropout = nn.Dropout(dropout)
        self.rope = RotaryPositions(width // num_heads, sequence_length, rope_base)
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio=mlp_ratio, dropout=dropout, qk_norm=qk_norm, causal=True) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.output = nn.Linear(width, vocab_size, bias=False)
        init_gpt(self, depth)
        if tie_weights:
            self.output.weight = self.embedding.weight

    @property
    def output_weight(self) -> Tensor:
        """(V, D) the output layer's weight."""
        return self.output.weight

    def hidden(self, inputs: Tensor) -> Tensor:
        """(N, T, D) the hidden states before the output layer, for token indices (N, T)."""
        check_inputs(inputs, "transformer_lm", "token indices", ("T",), tokens=True)
        length = inputs.shape[1]
        if length > self.sequence_length:
            raise ValueError(f"model=transformer_lm takes at most sequence_length = {self.sequence_length} tokens, but got {length}")
        states = self.dropout(self.embedding(inputs))
        rotation = self.rope(length)
        for block in self.blocks:
            states = block(states, rotation)
        return self.norm(states)

    def head(self, hidden: Tensor) -> Tensor:
        """(…, V) the logits of hidden states (…, D)."""
        return linear(hidden, self.output_weight)

    def forward(self, inputs: Tensor) -> ModelOutput:
        hidden = self.hidden(inputs)
        return ModelOutput(self.head(hidden).transpose(1, 2), hidden)


class Block(nn.Module):
    """One pre-norm transformer block: attention, then a GELU layer, each added to what came in.

    Args:
        width: size of the states.
        num_heads: attention heads; must divide ``width``.
        mlp_ratio: hidden size of the GELU layer, over ``width``.
        dropout: probability, in [0, 1).
        qk_norm: RMS-normalise queries and keys.
        causal: a position sees itself and what is before it.

    Shapes:
        states (N, T, width) -> (N, T, width).
    """

    def __init__(self, width: int, num_heads: int, *, mlp_ratio: float = 4.0, dropout: float = 0.0, qk_norm: bool = False, causal: bool = False) -> None:
        super().__init__()
        require(0 <= dropout < 1, "dropout must be in [0, 1)", dropout)
        require(mlp_ratio * width >= 1, "mlp_ratio must be positive", mlp_ratio)
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width, num_heads, dropout=dropout, qk_norm=qk_norm, causal=causal)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, int(mlp_ratio * width), bias=False)
        self.project = nn.Linear(int(mlp_ratio * width), width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, rotation: Tensor | None = None) -> Tensor:
        states = states + self.dropout(self.attention(self.attention_norm(states), rotation))
        return states + self.dropout(self.project(gelu(self.expand(self.mlp_norm(states)))))


class Attention(nn.Module):
    """Multi-head self-attention by :func:`torch.nn.functional.scaled_dot_product_attention` (flash attention where there is one).

    With ``qk_norm``, a head's attention logits lie in ± √d times the product of the two norms' largest gains, d the head's size.
    """

    def __init__(self, width: int, num_heads: int, *, dropout: float = 0.0, qk_norm: bool = False, causal: bool = False) -> None:
        super().__init__()
        require(num_heads >= 1 and width % num_heads == 0, f"width must be a multiple of num_heads = {num_heads}", width)
        self.num_heads, self.dropout, self.causal = num_heads, dropout, causal
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = nn.RMSNorm(width // num_heads, eps=1e-6) if qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(width // num_heads, eps=1e-6) if qk_norm else nn.Identity()
        self.project = nn.Linear(width, width, bias=False)

    def queries_keys_values(self, states: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(N, heads, T, d) each; queries and keys normalised and rotated."""
        queries, keys, values = self.query_key_value(states).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        return queries, keys, values

    def forward(self, states: Tensor, rotation: Tensor | None = None) -> Tensor:
        queries, keys, values = self.queries_keys_values(states, rotation)
        dropout = self.dropout if self.training else 0.0
        attended = scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=self.causal)
        return self.project(attended.transpose(1, 2).flatten(2))


class RotaryPositions(nn.Module):
    r"""Cosines and sines of :math:`m\,\theta_i` with :math:`\theta_i = b^{-2i/d}` for position *m* and pair *i* of a head of size *d*.

    The dot product of a query at *m* and a key at *n* then depends on :math:`m - n` alone. The table is no part of the checkpoint.

    Source:
        Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, arXiv:2104.09864, eq. 15.
    """

    table: Tensor

    def __init__(self, head_size: int, length: int, base: float = 10000.0) -> None:
        super().__init__()
        require(head_size % 2 == 0, "a head's size must be even for rotary positions", head_size)
        require(base > 1, "rope_base must be > 1", base)
        # double precision: at position 10⁵ a float32 angle is off by 0.01
        frequencies = base ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("table", torch.stack([angles.cos(), angles.sin()]).to(torch.get_default_dtype()), persistent=False)

    def forward(self, length: int) -> Tensor:
        """(2, length, head_size / 2): cosines and sines of the first ``length`` positions."""
        return self.table[:, :length]


def rotate(states: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair (i, i + d/2) of ``states`` (…, T, d) by its position's angle; the dtype stays."""
    cosine, sine = rotation
    first, second = states.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1).to(states.dtype)


@torch.no_grad()
def init_gpt(model: nn.Module, depth: int, std: float = 0.02) -> None:
    """N(0, std²) for linear layers and embeddings, N(0, std² / (2 depth)) for what writes into the residual stream; biases 0."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0.0, std / math.sqrt(2 * depth) if name.endswith("project") else std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
