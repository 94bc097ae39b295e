import pytest
import torch
from scipy import stats
from torch import nn

from components.binding import bind
from components.objective import Objective
from components.quantities import Quantities
from components.transforms import CutMix, Mixup
from components.transforms.mixing import keep_mask, symmetric_beta

CPU = torch.device("cpu")


def pictures(size: int = 6) -> dict[str, torch.Tensor]:
    """Each picture is filled with its own number, so that the mixture shows who the partner was."""
    return {"inputs": torch.arange(float(size)).reshape(-1, 1, 1, 1).expand(size, 1, 8, 8).clone(), "target": torch.arange(size), "index": torch.arange(size)}


class TestBeta:
    @pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
    def test_is_beta_distributed(self, alpha):
        torch.manual_seed(0)
        draws = torch.stack([symmetric_beta(alpha, CPU) for _ in range(3000)])
        assert stats.kstest(draws.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01

    @pytest.mark.parametrize("alpha", [1e-4, 1e4])
    def test_extreme_parameters_give_numbers(self, alpha):
        torch.manual_seed(0)
        draws = torch.stack([symmetric_beta(alpha, CPU) for _ in range(500)])
        assert bool(((draws >= 0) & (draws <= 1)).all())
        assert draws.mean().item() == pytest.approx(0.5, abs=0.1)
        assert bool(((draws < 0.01) | (draws > 0.99)).all()) if alpha < 1 else bool(((draws - 0.5).abs() < 0.05).all())


class TestMixup:
    def test_mixes_exactly(self):
        torch.manual_seed(0)
        batch = pictures()
        mixed = Mixup(alpha=1.0)(batch)
        share, partner = mixed["mix_weight"], mixed["mix_target"]["target"]
        expected = share * batch["inputs"] + (1 - share) * batch["inputs"][partner]
        torch.testing.assert_close(mixed["inputs"], expected)
        assert torch.equal(mixed["target"], batch["target"])
        assert partner.sort().values.tolist() == list(range(6))

    def test_the_whole_share_is_the_identity(self):
        batch = pictures()
        mixed = Mixup(probability=0.0)(batch)
        assert mixed["mix_weight"].item() == 1.0
        assert torch.equal(mixed["inputs"], batch["inputs"])

    def test_the_batch_mean_is_preserved(self):
        torch.manual_seed(0)
        batch = {"inputs": torch.randn(16, 3, dtype=torch.float64), "target": torch.zeros(16)}
        for _ in range(10):
            torch.testing.assert_close(Mixup(alpha=1.0)(batch)["inputs"].mean(0), batch["inputs"].mean(0))

    def test_probability_is_the_share_of_mixed_batches(self):
        torch.manual_seed(0)
        mixed = [Mixup(1.0, probability=0.3)(pictures())["mix_weight"].item() < 1 for _ in range(400)]
        assert sum(mixed) / 400 == pytest.approx(0.3, abs=0.07)

    def test_refuses(self):
        with pytest.raises(ValueError, match="alpha must be > 0"):
            Mixup(alpha=0)
        with pytest.raises(ValueError, match=r"probability must be in \[0, 1\], but got 1.5"):
            Mixup(probability=1.5)
        with pytest.raises(ValueError, match="mixup mixes targets"):
            Mixup()({"inputs": torch.zeros(2, 3)})
        with pytest.raises(ValueError, match=r"mixup takes floating-point inputs, but got torch.int64"):
            Mixup()({"inputs": torch.zeros(2, 3, dtype=torch.long), "target": torch.zeros(2)})


class TestCutMix:
    def test_every_pixel_is_its_own_or_the_partners_and_the_share_is_the_area(self):
        seen = set()
        for seed in range(50):
            torch.manual_seed(seed)
            batch = pictures()
            mixed = CutMix()(batch)
            partner = mixed["mix_target"]["target"]
            own = mixed["inputs"] == batch["inputs"]
            pasted = mixed["inputs"] == batch["inputs"][partner]
            assert bool((own | pasted).all())
            moved = (partner != batch["target"]).nonzero()[:, 0]  # a picture that is its own partner shows nothing
            areas = own[moved].float().mean(dim=(1, 2, 3))
            torch.testing.assert_close(areas, mixed["mix_weight"].expand_as(areas), rtol=0, atol=0)
            seen.add(mixed["mix_weight"].item())
        assert len(seen) > 15

    def test_what_is_pasted_is_a_rectangle(self):
        for seed in range(50):
            torch.manual_seed(seed)
            removed = ~keep_mask(torch.rand(()), 9, 13)
            rows, columns = removed.any(1), removed.any(0)
            assert torch.equal(removed, rows.unsqueeze(1) & columns.unsqueeze(0))
            for line in (rows, columns):
                where = line.nonzero()[:, 0]
                assert len(where) == 0 or len(where) == int(where[-1] - where[0]) + 1

    def test_the_aimed_area_is_met_where_the_border_does_not_cut(self):
        torch.manual_seed(0)
        kept = [keep_mask(torch.tensor(0.75), 16, 16).float().mean().item() for _ in range(100)]
        assert min(kept) == 0.75
        assert all(k >= 0.75 for k in kept)

    def test_extreme_shares(self):
        assert bool(keep_mask(torch.tensor(1.0), 8, 8).all())
        assert keep_mask(torch.tensor(0.0), 8, 8).float().mean().item() < 1

    def test_never_applied_is_the_identity(self):
        batch = pictures()
        mixed = CutMix(probability=0.0)(batch)
        assert mixed["mix_weight"].item() == 1.0
        assert torch.equal(mixed["inputs"], batch["inputs"])

    @pytest.mark.parametrize("channels", [(), (2,)])
    def test_masks_are_pasted_like_the_pictures(self, channels):
        torch.manual_seed(1)
        inputs = torch.randint(0, 5, (6, 1, 8, 8)).float()
        mask = inputs[:, 0].long() if not channels else inputs.long().expand(6, 2, 8, 8)
        mixed = CutMix()({"inputs": inputs, "target": mask, "index": torch.arange(6)})
        assert "mix_target" not in mixed
        assert "mix_weight" not in mixed
        assert not torch.equal(mixed["inputs"], inputs)
        assert torch.equal(mixed["target"], mixed["inputs"][:, 0].long() if not channels else mixed["inputs"].long().expand(6, 2, 8, 8))

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"cutmix takes pictures, inputs \(N, C, H, W\), but got \(4, 3\)"):
            CutMix()({"inputs": torch.zeros(4, 3), "target": torch.zeros(4)})
        with pytest.raises(ValueError, match="alpha must be > 0"):
            CutMix(alpha=-1)
        with pytest.raises(ValueError, match="cutmix mixes targets"):
            CutMix()({"inputs": torch.zeros(4, 1, 8, 8)})


class TestMixedObjective:
    """The objective mixes losses; where a mixed target has a meaning, that is the same."""

    def objective(self, loss: nn.Module, inputs: dict[str, str]) -> Objective:
        return Objective(bind(loss, ["logits", "target"], name="loss", task="t", inputs=inputs))

    @pytest.mark.parametrize("transform", [Mixup(alpha=1.0), CutMix()])
    def test_cross_entropy_is_that_of_the_mixed_soft_targets(self, transform):
        torch.manual_seed(0)
        logits = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
        mixed = transform(pictures())
        objective = self.objective(nn.CrossEntropyLoss(), {"input": "logits"})
        total, _ = objective(Quantities(mixed, logits=logits), 0)
        share, one_hot = mixed["mix_weight"].double(), torch.eye(6, dtype=torch.float64)
        soft = share * one_hot[mixed["target"]] + (1 - share) * one_hot[mixed["mix_target"]["target"]]
        expected = nn.functional.cross_entropy(logits, soft)
        torch.testing.assert_close(total, expected)
        torch.testing.assert_close(torch.autograd.grad(total, logits), torch.autograd.grad(expected, logits))

    def test_squared_error_has_the_gradient_of_the_mixed_target(self):
        torch.manual_seed(0)
        batch = {"inputs": torch.randn(5, 3), "target": torch.randn(5, 2, dtype=torch.float64)}
        prediction = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
        mixed = Mixup(alpha=1.0)(batch)
        total, _ = self.objective(nn.MSELoss(), {"input": "logits"})(Quantities(mixed, logits=prediction), 0)
        share = mixed["mix_weight"].double()
        soft = share * mixed["target"] + (1 - share) * mixed["mix_target"]["target"]
        expected = nn.functional.mse_loss(prediction, soft)
        torch.testing.assert_close(torch.autograd.grad(total, prediction), torch.autograd.grad(expected, prediction))

    def test_the_whole_share_is_the_plain_loss(self):
        logits = torch.randn(6, 6)
        objective = self.objective(nn.CrossEntropyLoss(), {"input": "logits"})
        total, _ = objective(Quantities(Mixup(probability=0.0)(pictures()), logits=logits), 0)
        plain, _ = objective(Quantities(pictures(), logits=logits), 0)
        assert torch.equal(total, plain)
