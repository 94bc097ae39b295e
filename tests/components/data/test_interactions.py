from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from components.data import Auctions, DataModule, FeatureCrosses, ImplicitFeedback, LabelSets, QueryDocuments


def ready(data: DataModule) -> Any:
    data.setup()
    return data


class TestImplicitFeedback:
    def test_left_out_in_training_is_what_the_user_took_there(self) -> None:
        data = ready(ImplicitFeedback(size=900, users=60, items=50))
        train = data.splits["train"]
        user = train["inputs"].argmax(1)
        taken = torch.zeros(60, train["left_out"].shape[1], dtype=torch.bool)
        taken[user, train["target"]] = True
        assert not train["left_out"].gather(1, train["target"][:, None]).any()
        assert torch.equal(train["left_out"].scatter(1, train["target"][:, None], True), taken[user])

    def test_held_out_interactions_are_among_what_the_user_does_not_like(self) -> None:
        data = ready(ImplicitFeedback(size=900, users=60, items=50, false_negatives=0.5))
        test = data.splits["test"]
        likes = data.likes[test["inputs"].argmax(1)]
        assert likes.gather(1, test["target"][:, None]).all()
        assert torch.equal(test["left_out"].scatter(1, test["target"][:, None], True), likes)

    def test_no_interaction_is_in_two_splits(self) -> None:
        data = ready(ImplicitFeedback(size=900, users=60, items=50))
        pairs = [{(int(u), int(i)) for u, i in zip(s["inputs"].argmax(1), s["target"], strict=True)} for s in data.splits.values()]
        assert sum(map(len, pairs)) == len(set().union(*pairs)) == len(data.user)

    def test_share_of_likes_never_taken(self) -> None:
        for share in (0.0, 0.5):
            data = ready(ImplicitFeedback(false_negatives=share))
            taken, liked = torch.bincount(data.user, minlength=300), data.likes.sum(1)
            unseen = 1 - taken.sum() / liked.sum()
            assert float(unseen) == pytest.approx(share, abs=0.03)

    def test_popularity_has_a_heavy_tail(self) -> None:
        def share_of_the_top(popularity: float) -> float:
            counts = torch.tensor(ready(ImplicitFeedback(popularity=popularity)).facts()["class_counts"]).sort(descending=True).values
            return float(counts[:20].sum() / counts.sum())

        assert share_of_the_top(1.5) > share_of_the_top(0.7) > share_of_the_top(0.0)

    def test_a_history_lacks_its_own_target(self) -> None:
        data = ready(ImplicitFeedback(size=900, users=60, items=50, represent="history"))
        for split in data.splits.values():
            assert not split["inputs"].gather(1, split["target"][:, None]).any()
        assert torch.equal(data.splits["train"]["inputs"].bool(), data.splits["train"]["left_out"])


class TestLabelSets:
    def test_one_to_ten_labels_of_one_cluster(self) -> None:
        data = ready(LabelSets(size=600))
        target = data.splits["train"]["target"]
        assert set(target.sum(1).tolist()) == set(range(1, 11))
        assert all(len(set((row.nonzero()[:, 0] % 15).tolist())) == 1 for row in target[:50])

    def test_texts_lie_near_their_labels(self) -> None:
        data = ready(LabelSets(size=600))
        split, items = data.splits["train"], torch.tensor(data.facts()["item_features"])
        assert items.shape == (300, 32) and torch.allclose(items.norm(dim=1), torch.ones(300))
        cosine = normalize(split["inputs"], dim=1) @ items.T
        assert float(cosine[split["target"] == 1].mean()) > float(cosine[split["target"] == 0].mean()) + 0.3

    def test_a_finished_run_knows_the_features_without_the_data(self) -> None:
        data, restored = ready(LabelSets(size=600)), LabelSets(size=600)
        restored.load_state_dict(data.state_dict())
        assert restored.facts()["item_features"] == data.facts()["item_features"]


def test_offsets_move_all_scores_of_a_question() -> None:
    spread = {}
    for offset in (0.0, 2.0):
        data = ready(QueryDocuments(size=1200, documents=60, offset=offset))
        scores = data.splits["train"]["inputs"] @ data.item_features.T
        spread[offset] = float(scores.mean(1).std())
    assert spread[2.0] > 3 * spread[0.0]


class TestAuctions:
    def test_clicks_follow_the_click_rates(self) -> None:
        split = ready(Auctions(size=4000)).splits["train"]
        for low in (0.0, 0.2, 0.5):
            there = (split["click_rate"] >= low) & (split["click_rate"] < low + 0.1)
            assert float(split["target"][there].float().mean()) == pytest.approx(float(split["click_rate"][there].mean()), abs=0.03)
        assert bool((split["bids"] > 0).all()) and split["bids"].shape == split["target"].shape

    def test_bids_follow_the_features(self) -> None:
        def explained(share: float) -> float:
            split = ready(Auctions(bids_follow=share)).splits["train"]
            x, log_bids = split["inputs"].view(-1, 5), split["bids"].log().view(-1, 1)
            residual = log_bids - x @ torch.linalg.lstsq(x, log_bids).solution
            return 1 - float(residual.var() / log_bids.var())

        assert explained(0.0) == pytest.approx(0, abs=0.01)
        assert explained(0.7) == pytest.approx(0.49, abs=0.03)

    def test_rows_belong_together(self) -> None:
        data = Auctions(size=200, base=0.0, linear=5.0, curved=0.0, dimensions=1)
        data.setup()
        for split in data.splits.values():
            assert torch.equal((split["click_rate"] > 0.5), (split["inputs"] > 0)) or torch.equal((split["click_rate"] > 0.5), (split["inputs"] < 0))


def test_crosses_alone_tell_clicks() -> None:
    split = ready(FeatureCrosses(size=8000, orders=[2], features=4)).splits["train"]
    x, y = split["inputs"], split["target"].float() - 0.5
    assert float((x * y[:, None]).mean(0).abs().max()) < 0.03, "no single feature does"
    assert max(float((x[:, i] * x[:, j] * y).mean().abs()) for i in range(4) for j in range(i)) > 0.2, "a product does"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ImplicitFeedback(users=5000), "users must be in 2 … 1200"),
        (lambda: ImplicitFeedback(false_negatives=1.0), r"false_negatives must be in \[0, 1\)"),
        (lambda: ImplicitFeedback(represent="ids"), "did you mean 'id'"),
        (lambda: LabelSets(max_labels=30), "max_labels must be in 1 … 20"),
        (lambda: LabelSets(labels=10), "labels must be at least twice the clusters"),
        (lambda: QueryDocuments(documents=2000), "documents must be in 2 … 750"),
        (lambda: QueryDocuments(offset=-1.0), "offset must be >= 0"),
        (lambda: Auctions(ads=1), "ads must be >= 2"),
        (lambda: Auctions(bids_follow=1.5), r"bids_follow must be in \[0, 1\]"),
        (lambda: FeatureCrosses(orders=[13]), "orders must be a list of numbers in 1 … 12"),
        (lambda: FeatureCrosses(scale=0.0), "scale must be > 0"),
    ],
)
def test_wrong_options_are_named(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
