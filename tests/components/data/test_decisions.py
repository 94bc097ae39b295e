import pytest
import torch

from components.data import Churn, RareClass


def test_rare_class_is_rare_everywhere() -> None:
    data = RareClass(size=2000, share=0.05)
    data.setup()
    for split in data.splits.values():
        assert split["target"].float().mean().item() == pytest.approx(0.05, abs=0.01)


def test_rare_class_is_that_far_away() -> None:
    inputs, target = (getattr(RareClass(size=20_000, share=0.5, separation=3.0).read(), name) for name in ("inputs", "target"))
    assert (inputs[target == 1].mean(0) - inputs[target == 0].mean(0)).norm().item() == pytest.approx(3.0, abs=0.1)


class TestChurn:
    def test_worth_follows_the_features_and_not_leaving(self) -> None:
        data = Churn(size=20_000)
        samples = data.read()
        leaves, worth = samples.target.double(), data.lifetime_values.double().log()
        assert leaves.mean().item() == pytest.approx(0.2)
        assert worth.median().exp().item() == pytest.approx(100.0, rel=0.05) and worth.std().item() == pytest.approx(1.0, abs=0.05)
        assert torch.corrcoef(torch.stack([leaves, worth]))[0, 1].abs() < 0.03
        told = torch.linalg.lstsq(samples.inputs.double(), worth - worth.mean()).solution
        explained = 1 - ((samples.inputs.double() @ told) - (worth - worth.mean())).var() / worth.var()
        assert explained.item() == pytest.approx(0.81, abs=0.03), "predictable squared"

    def test_every_batch_holds_its_customers_worth(self) -> None:
        data = Churn(size=400, batch_size=16)
        data.setup()
        batch = next(iter(data.loader("val", 16)))
        torch.testing.assert_close(batch["lifetime_value"], data.lifetime_values[data.rows["val"][batch["index"]]])

    def test_fewer_customers_keep_their_worth(self) -> None:
        data = Churn(size=400, fraction=0.5)
        data.setup()
        torch.testing.assert_close(data.splits["train"]["lifetime_value"], data.lifetime_values[data.rows["train"]])


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [(RareClass, {"share": 0.6}), (RareClass, {"separation": -1.0}), (Churn, {"share": 1.0}), (Churn, {"predictable": 1.5}), (Churn, {"dimensions": 1})],
)
def test_wrong_options_are_named(kind: type, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(**wrong)
