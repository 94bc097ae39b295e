from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from components.models import TransformerLM
from components.models.transformer import Attention, Block, RotaryPositions, rotate


def small(seed: int = 0, **options: object) -> TransformerLM:
    torch.manual_seed(seed)
    return TransformerLM(13, 12, **{"width": 32, "depth": 2, "num_heads": 4, **options})


def tokens(size: int = 3, length: int = 12) -> torch.Tensor:
    return torch.randint(13, (size, length), generator=torch.Generator().manual_seed(1))


class TestRotaryPositions:
    @pytest.mark.parametrize("shift", [1, 7, 90])
    def test_dot_products_depend_on_the_distance_alone(self, shift):
        table = RotaryPositions(16, 200).double()(200)
        torch.manual_seed(0)
        query, key = torch.randn(2, 1, 16, dtype=torch.float64)

        def score(m: int, n: int) -> float:
            return float((rotate(query, table[:, m : m + 1]) * rotate(key, table[:, n : n + 1])).sum())

        assert score(5, 2) == pytest.approx(score(5 + shift, 2 + shift), abs=1e-5)
        assert score(5, 2) != pytest.approx(score(5 + shift, 2), abs=1e-3)

    def test_keeps_length_and_leaves_position_zero(self):
        table = RotaryPositions(8, 50)(50)
        states = torch.randn(2, 3, 50, 8)
        turned = rotate(states, table)
        torch.testing.assert_close(turned.norm(dim=-1), states.norm(dim=-1))
        assert torch.equal(turned[:, :, 0], states[:, :, 0])

    def test_angles_are_the_papers(self):
        cosine, sine = RotaryPositions(8, 10)(10)
        angle = 3 * 10000 ** (-2 * 2 / 8)  # position 3, pair 2
        assert cosine[3, 2].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert sine[3, 2].item() == pytest.approx(math.sin(angle), abs=1e-6)

    def test_far_positions_are_exact(self):
        cosine = RotaryPositions(64, 100_001)(100_001)[0]
        assert cosine[100_000, 1].item() == pytest.approx(math.cos(100_000 * 10000 ** (-2 / 64)), abs=1e-6)

    def test_is_no_part_of_the_checkpoint(self):
        assert not RotaryPositions(8, 10).state_dict()

    def test_odd_heads_are_refused(self):
        with pytest.raises(ValueError, match="even"):
            RotaryPositions(7, 10)


class TestCausality:
    @pytest.mark.parametrize("position", [0, 5, 11])
    def test_the_future_does_not_change_the_past(self, position):
        model, inputs = small().eval(), tokens()
        changed = inputs.clone()
        changed[:, position] = (changed[:, position] + 1) % 13
        before, after = model(inputs).output, model(changed).output
        torch.testing.assert_close(before[..., :position], after[..., :position])
        assert not torch.allclose(before[..., position:], after[..., position:])

    def test_every_earlier_token_counts(self):
        model = small().eval()
        embedded: list[torch.Tensor] = []
        model.embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
        output = model(tokens(1)).output[0, :, 8].square().sum()
        gradient = torch.autograd.grad(output, embedded[-1])[0][0].abs().sum(1)
        assert (gradient[:9] > 0).all() and not gradient[9:].any()

    def test_a_prefix_alone_is_the_same(self):
        model, inputs = small().eval(), tokens()
        torch.testing.assert_close(model(inputs[:, :5]).output, model(inputs).output[..., :5])

    def test_without_causal_attention_sees_all(self):
        torch.manual_seed(0)
        block = Block(16, 4).eval()
        states = torch.randn(2, 6, 16)
        changed = states.clone()
        changed[:, -1] += 1
        assert not torch.allclose(block(states)[:, 0], block(changed)[:, 0])


class TestAttention:
    def test_is_softmax_of_scaled_dot_products(self):
        torch.manual_seed(0)
        attention, states = Attention(16, 2, causal=True), torch.randn(3, 5, 16)
        queries, keys, values = attention.queries_keys_values(states, None)
        scores = queries @ keys.transpose(2, 3) / math.sqrt(8)
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        expected = (scores.softmax(3) @ values).transpose(1, 2).reshape(3, 5, 16) @ attention.project.weight.T
        torch.testing.assert_close(attention(states), expected)

    @pytest.mark.parametrize("scale", [1.0, 1e3])
    def test_qk_norm_bounds_the_logits(self, scale):
        torch.manual_seed(0)
        attention = Attention(32, 4, qk_norm=True)
        with torch.no_grad():
            attention.query_key_value.weight.mul_(scale)
            attention.query_norm.weight.fill_(1.5)
        queries, keys, _ = attention.queries_keys_values(torch.randn(3, 20, 32), RotaryPositions(8, 20)(20))
        bound = 1.5 * math.sqrt(8)
        assert (queries @ keys.transpose(2, 3) / math.sqrt(8)).abs().max() <= bound + 1e-4

    def test_without_qk_norm_the_logits_grow(self):
        torch.manual_seed(0)
        attention = Attention(32, 4)
        with torch.no_grad():
            attention.query_key_value.weight.mul_(1e3)
        queries, keys, _ = attention.queries_keys_values(torch.randn(3, 20, 32), None)
        assert (queries @ keys.transpose(2, 3)).abs().max() > 1e4

    def test_dropout_acts_in_training_only(self):
        torch.manual_seed(0)
        attention, states = Attention(16, 2, dropout=0.5), torch.randn(3, 5, 16)
        assert not torch.equal(attention(states), attention(states))
        attention.eval()
        assert torch.equal(attention(states), attention(states))
        queries, keys, values = attention.queries_keys_values(states, None)
        expected = scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2) @ attention.project.weight.T
        torch.testing.assert_close(attention(states), expected)


class TestTransformerLM:
    def test_tied_weights_share_storage(self):
        model = small()
        assert model.output_weight.data_ptr() == model.embedding.weight.data_ptr()
        assert sum(p is model.output_weight for p in model.parameters()) == 1
        untied = small(tie_weights=False)
        assert untied.output_weight.data_ptr() != untied.embedding.weight.data_ptr()
        assert sum(p.numel() for p in untied.parameters()) == sum(p.numel() for p in model.parameters()) + 13 * 32

    def test_weights_stay_tied_through_a_checkpoint(self):
        model, other = small(), small(seed=1)
        other.load_state_dict(model.state_dict())
        assert other.output_weight.data_ptr() == other.embedding.weight.data_ptr()

    def test_logits_are_hidden_states_times_output_weight(self):
        model, inputs = small().eval(), tokens()
        output, features = model(inputs)
        hidden = model.hidden(inputs)
        assert torch.equal(hidden, features) and hidden.shape == (3, 12, 32)
        assert torch.equal(model.head(hidden).transpose(1, 2), output)
        torch.testing.assert_close(output, torch.einsum("ntd,vd->nvt", hidden, model.output_weight))

    def test_starts_near_the_uniform_distribution(self):
        model, inputs = small(), tokens()
        loss = torch.nn.functional.cross_entropy(model(inputs).output, tokens().roll(1, 1))
        assert loss.item() == pytest.approx(math.log(13), abs=0.1)

    def test_residual_writers_start_smaller(self):
        torch.manual_seed(0)
        model = TransformerLM(16, 8, width=128, depth=8)
        for block in model.blocks:
            assert block.expand.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert block.project.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
            assert block.attention.project.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)

    def test_learns_to_copy_what_came_before(self):
        """Period-3 sequences: after a few steps the next token is known from the one three back."""
        torch.manual_seed(0)
        model = TransformerLM(5, 12, width=32, depth=2, num_heads=2, qk_norm=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(150):
            sequence = torch.randint(5, (32, 3)).repeat(1, 5)[:, :13]
            optimizer.zero_grad()
            logits = model(sequence[:, :-1]).output
            loss = torch.nn.functional.cross_entropy(logits[..., 3:], sequence[:, 4:])
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.3

    def test_longer_than_it_was_made_for(self):
        with pytest.raises(ValueError, match="at most sequence_length = 12 tokens, but got 13"):
            small()(tokens(length=13))
