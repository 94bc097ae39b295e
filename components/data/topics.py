"""Documents about several topics at once, whose words give the topics' shares away."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.data.arrays import Samples
from components.data.synthetic import Synthetic
from components.validation import require


class TopicMixtures(Synthetic):
    r"""Bags of words of documents with one label or several, which share the words equally: multi-label classification.

    A document has :math:`1 + \mathrm{Poisson}(m - 1)` labels *Y* (at most all), drawn without replacement, and
    :math:`n \sim \mathrm{Poisson}(\text{length})` words (at least one), each from the distribution of one of them at random:

    .. math:: x = \frac{1}{n}\, \mathrm{Multinomial}\Big(n, \frac{1}{|Y|} \sum_{k \in Y} \theta_k\Big), \qquad \theta_k \sim \mathrm{Dirichlet}(1, \dots, 1)

    Args:
        size: documents, over all splits.
        labels: topics, 2 or more.
        words: of the vocabulary, 2 or more.
        length: mean number of words of a document, >= 1.
        mean_labels: *m* >= 1, mean number of labels before the cut at all of them.
        **common: see :class:`~components.data.synthetic.Synthetic`.

    Raises:
        ValueError: an argument out of its range.

    Source:
        After the simulation in Martins and Astudillo, "From Softmax to Sparsemax", ICML 2016, arXiv:1602.02068, §4.1 (their numbers of labels and words
        follow other distributions).
    """

    def __init__(self, *, size: int = 1500, labels: int = 10, words: int = 50, length: float = 200.0, mean_labels: float = 2.0, **common: Any) -> None:
        super().__init__(size=size, **common)
        require(labels >= 2, "labels must be >= 2", labels)
        require(words >= 2, "words must be >= 2", words)
        require(length >= 1, "length must be >= 1", length)
        require(mean_labels >= 1, "mean_labels must be >= 1", mean_labels)
        self.labels, self.words, self.length, self.mean_labels = labels, words, length, mean_labels

    def read(self) -> Samples:
        generator = self.generator()
        exponential = -torch.rand(self.labels, self.words, generator=generator, dtype=torch.float64).clamp(min=1e-12).log()
        topics = exponential / exponential.sum(1, keepdim=True)  # a flat Dirichlet
        target = self.label_sets(generator)
        words = target.double() @ topics / target.sum(1, keepdim=True)
        counts = torch.zeros(self.total, self.words, dtype=torch.float64)
        lengths = torch.poisson(torch.full((self.total,), float(self.length)), generator=generator).clamp(min=1).long()
        drawn = torch.multinomial(words, int(lengths.max()), replacement=True, generator=generator)
        counts.scatter_add_(1, drawn, (torch.arange(drawn.shape[1]) < lengths.unsqueeze(1)).double())
        inputs = (counts / lengths.unsqueeze(1)).float()
        return Samples(inputs, target, "multilabel", [f"topic_{k}" for k in range(self.labels)])

    def label_sets(self, generator: torch.Generator) -> Tensor:
        """(N, labels) in {0, 1}, at least one a row."""
        amounts = 1 + torch.poisson(torch.full((self.total,), float(self.mean_labels - 1)), generator=generator).long().clamp(max=self.labels - 1)
        rank = torch.rand(self.total, self.labels, generator=generator).argsort(1).argsort(1)
        return (rank < amounts.unsqueeze(1)).long()
