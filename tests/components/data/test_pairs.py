import pytest
import torch

from components.data import PairedViews


def made(**options) -> PairedViews:
    data = PairedViews(size=400, identities=40, **options)
    data.setup()
    return data


class TestPairedViews:
    def test_both_views_show_the_same_identity(self) -> None:
        """From either view a linear map finds the other, far better than chance."""
        data = made(within=0.1, noise=0.1)
        first, second = (data.splits["train"][name].double() for name in ("inputs", "inputs_2"))
        found = torch.linalg.lstsq(first, second).solution
        test = data.splits["test"]
        rest = (test["inputs"].double() @ found - test["inputs_2"]).square().mean() / test["inputs_2"].square().mean()
        assert rest < 0.1

    def test_both_are_standardised_on_training(self) -> None:
        train = made().splits["train"]
        for name in ("inputs", "inputs_2"):
            torch.testing.assert_close(train[name].mean(0), torch.zeros(32), atol=1e-5, rtol=0)
            torch.testing.assert_close(train[name].std(0, unbiased=False), torch.ones(32), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
    def test_mismatched_pairs_exchange_second_views_in_training_alone(self, share: float) -> None:
        clean, noisy = made(), made(mismatched=share)
        for part in ("val", "test"):
            assert all(torch.equal(clean.splits[part][k], noisy.splits[part][k]) for k in clean.splits[part])
        before, after = clean.splits["train"], noisy.splits["train"]
        assert torch.equal(before["inputs"], after["inputs"]) and torch.equal(before["target"], after["target"])
        moved = (before["inputs_2"] != after["inputs_2"]).any(1)
        assert int(moved.sum()) == round(share * len(moved))
        assert torch.equal(before["inputs_2"].sort(0).values, after["inputs_2"].sort(0).values), "exchanged, none made up"

    def test_which_are_mismatched_follows_the_seed(self) -> None:
        first, again, other = (made(mismatched=0.3, seed=seed).splits["train"]["inputs_2"] for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_bad_options(self) -> None:
        for wrong in ({"identities": 1}, {"latent": 0}, {"dimensions": 0}, {"within": -1.0}, {"noise": -1.0}, {"mismatched": 1.1}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                PairedViews(**{"size": 400, "identities": 40, **wrong})
