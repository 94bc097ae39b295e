import pytest
import torch
from torch.nn.functional import cosine_similarity

from components.models import Scorer, TwoTower


def test_one_hot_queries_are_matrix_factorisation() -> None:
    model = TwoTower((5,), 7, width=3, similarity="dot")
    users = model.query_tower[-1].weight.T
    torch.testing.assert_close(model(torch.eye(5)).output, users @ model.items.T)


def test_cosines_over_a_temperature() -> None:
    model = TwoTower((4,), 3, width=6, hidden=(5,), temperature=0.05)
    inputs = torch.randn(2, 4)
    queries = model(inputs).features
    torch.testing.assert_close(model(inputs).output, cosine_similarity(queries[:, None], model.items[None], dim=2) / 0.05)


def test_candidates_with_features_have_a_tower() -> None:
    features = torch.randn(6, 4).tolist()
    apart, shared = TwoTower((4,), 6, features, item_hidden=(8,)), TwoTower((4,), 6, features, hidden=(8,), shared=True)
    assert not hasattr(apart, "items") and len(list(apart.parameters())) == 1 + 4
    assert len(list(shared.parameters())) == 4
    diagonal = shared(torch.tensor(features)).output.diagonal()
    torch.testing.assert_close(diagonal, torch.ones(6))  # a query that is a candidate's features is that candidate


@pytest.mark.parametrize(
    ("features", "options", "says"),
    [([[0.0, 1.0]], {}, "item_features must be those of the 3 candidates, but got 1"), ([[0.0]] * 3, {"shared": True}, "needs candidates with 2 features")],
)
def test_features_that_do_not_fit(features: list[list[float]], options: dict[str, bool], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TwoTower((2,), 3, features, **options)


class TestScorer:
    def test_every_candidate_is_scored_alike(self) -> None:
        model = Scorer((12,), 3)
        inputs = torch.randn(5, 3, 4)
        order = torch.tensor([2, 0, 1])
        torch.testing.assert_close(model(inputs[:, order].flatten(1)).output, model(inputs.flatten(1)).output[:, order])

    def test_without_hidden_layers_it_is_linear(self) -> None:
        model = Scorer((6,), 2, hidden=())
        inputs = torch.randn(4, 6)
        expected = inputs.unflatten(1, (2, 3)) @ model.head.weight[0] + model.head.bias
        torch.testing.assert_close(model(inputs).output, expected)
        assert model(inputs).features.shape == (4, model.feature_dim) == (4, 3)

    def test_features_that_do_not_divide(self) -> None:
        with pytest.raises(ValueError, match="input_shape must hold 3 candidates of equally many features"):
            Scorer((7,), 3)
