import pytest
import torch

from components.data import TopicMixtures


class TestTopicMixtures:
    def test_documents_have_labels_and_shares_of_words(self) -> None:
        samples = TopicMixtures(size=400, labels=6, words=30, length=50, mean_labels=2.5).read()
        assert samples.inputs.shape == (400, 30) and samples.target.shape == (400, 6)
        torch.testing.assert_close(samples.inputs.sum(1), torch.ones(400))
        amounts = samples.target.sum(1)
        assert amounts.min() == 1 and amounts.max() <= 6
        assert amounts.float().mean().item() == pytest.approx(2.5, abs=0.3)

    def test_long_documents_show_the_mixture_of_their_topics(self) -> None:
        samples = TopicMixtures(size=200, labels=3, words=8, length=20_000, mean_labels=1.5).read()
        one = {k: samples.inputs[(samples.target.sum(1) == 1) & (samples.target[:, k] == 1)].mean(0) for k in range(3)}
        both = samples.inputs[(samples.target == torch.tensor([1, 1, 0])).all(1)].mean(0)
        torch.testing.assert_close(both, (one[0] + one[1]) / 2, atol=5e-3, rtol=0)

    @pytest.mark.parametrize("wrong", [{"labels": 1}, {"words": 1}, {"length": 0.5}, {"mean_labels": 0.5}])
    def test_refusals(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be >="):
            TopicMixtures(**wrong)  # type: ignore[arg-type]
