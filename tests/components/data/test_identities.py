import pytest
from torch.nn.functional import normalize

from components.data import Identities
from components.metrics import VerificationAUC, utilisation


def loaded(**settings: object) -> Identities:
    data = Identities(**settings)  # type: ignore[arg-type]
    data.setup()
    return data


def test_validation_and_test_have_persons_of_their_own() -> None:
    data = loaded(size=600, classes=12, unseen=4)
    assert data.facts()["num_classes"] == 8
    assert data.splits["train"]["target"].unique().tolist() == list(range(8))
    for split in ("val", "test"):
        assert data.splits[split]["target"].unique().tolist() == [8, 9, 10, 11]


def test_all_persons_everywhere_if_none_is_unseen() -> None:
    data = loaded(size=600, classes=12, unseen=0)
    for split in ("train", "val", "test"):
        assert len(data.splits[split]["target"].unique()) == 12


def test_named_classes_take_the_place_of_unseen() -> None:
    assert loaded(size=600, classes=12, holdout_classes=[0, 1, 2]).facts()["class_names"][0] == "person 3"


def test_variation_hides_who_it_is() -> None:
    """Verification by the raw inputs is poor, near perfect without variation, and chance where a person is all noise."""
    found = {}
    for nuisance, noise in ((1.5, 0.3), (0.0, 0.3), (0.0, 1e6)):
        metric, split = VerificationAUC(), loaded(size=1200, classes=24, unseen=12, nuisance=nuisance, noise=noise).splits["test"]
        metric.update(split["inputs"], split["target"])
        found[nuisance, noise] = metric.compute().item()
    assert 0.55 < found[1.5, 0.3] < 0.85
    assert found[0.0, 0.3] > 0.98
    assert found[0.0, 1e6] == pytest.approx(0.5, abs=0.03)


def test_new_persons_lie_in_the_same_space() -> None:
    data = loaded()
    train, test = (normalize(data.splits[name]["inputs"], dim=1) for name in ("train", "test"))
    own = utilisation(train[:500], train[500:])
    assert float(utilisation(test, train[500:]) / own) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 3}, "classes must be in 4"),
        ({"unseen": 1}, "unseen must be 0 or in 2 … 58"),
        ({"identity": 0}, "identity must be >= 1"),
        ({"nuisance": -1.0}, "nuisance must be >= 0"),
    ],
)
def test_refuses(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        Identities(**settings)
