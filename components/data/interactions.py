"""Synthetic sets for ranking, whose truth is known: implicit feedback, label sets, questions and documents, ad auctions, crosses of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from components.data.arrays import Samples
from components.data.base import Split
from components.data.synthetic import Synthetic
from components.validation import require, require_choice


class ImplicitFeedback(Synthetic):
    r"""Which items users took, of more that they like: a few items that everybody takes, and likes that never show.

    A user's affinity to an item is

    .. math:: a_{ui} = \text{taste} \cdot \frac{p_u \cdot q_i}{\sqrt{d}} - \text{popularity} \cdot \log r_i + g_{ui}

    with Gaussian *p* and *q*, :math:`r_i` the item's rank (a power law of popularity) and Gumbel noise *g*. A user *likes* the items of highest
    affinity, and *took* some of them at random; a share ``false_negatives`` of the likes was never taken, and a sampler of negatives cannot tell.
    How much users take is log-normal.

    A sample is one interaction: the user (one-hot, or what else the user took in training) and the item taken. In training all that a user took
    there is left out of the user's negatives; in validation and test all that the user likes beside the target, so that what is judged is the
    target's rank among items that the user does not like.

    Args:
        size: interactions taken, over all splits (up to rounding).
        users: how many, each with at least 5 interactions.
        items: how many; those that nobody took are dropped.
        dimensions: *d* of tastes.
        taste: how much of the affinity is taste.
        popularity: exponent of the power law; 0: none.
        false_negatives: share of each user's likes that was never taken, in [0, 1).
        represent: a user is ``id`` (one-hot) or ``history`` (the other items taken in training).
        **common: see :class:`~components.data.synthetic.Synthetic`.

    Raises:
        ValueError: an argument out of its range.

    Source:
        The setting: Rendle et al., "BPR", UAI 2009, arXiv:1205.2618; unobserved likes: Yang et al., PSL, NeurIPS 2024, arXiv:2411.00163.
    """

    def __init__(
        self,
        *,
        size: int = 6000,
        users: int = 300,
        items: int = 200,
        dimensions: int = 8,
        taste: float = 3.0,
        popularity: float = 0.7,
        false_negatives: float = 0.0,
        represent: str = "id",
        **common: Any,
    ) -> None:
        super().__init__(size=size, standardise=False, **common)
        require(users >= 2 and 5 * users <= size, f"users must be in 2 … {size // 5} (a fifth of size)", users)
        require(items >= 10, "items must be >= 10", items)
        require(dimensions >= 1, "dimensions must be >= 1", dimensions)
        require(taste >= 0, "taste must be >= 0", taste)
        require(popularity >= 0, "popularity must be >= 0", popularity)
        require(0 <= false_negatives < 1, "false_negatives must be in [0, 1)", false_negatives)
        require_choice("represent", represent, ("id", "history"))
        self.users, self.items, self.dimensions = users, items, dimensions
        self.taste, self.popularity, self.false_negatives, self.represent = taste, popularity, false_negatives, represent

    def read(self) -> Samples:
        generator = self.generator()
        users, items = (torch.randn(n, self.dimensions, generator=generator) for n in (self.users, self.items))
        rank = 1.0 + torch.randperm(self.items, generator=generator)
        noise = -torch.rand(self.users, self.items, generator=generator).clamp(1e-9, 1 - 1e-7).log().neg().log()
        affinity = self.taste * users @ items.T / self.dimensions**0.5 - self.popularity * rank.log() + noise
        activity = (0.5 * torch.randn(self.users, generator=generator)).exp()
        taken = (activity / activity.sum() * self.total).round().clamp(5, self.items // 2).long()
        liked = (taken / (1 - self.false_negatives)).round().long().clamp(max=self.items - 1)
        place = affinity.argsort(1, descending=True).argsort(1)
        self.likes = place < liked.unsqueeze(1)
        chosen = torch.rand(self.users, self.items, generator=generator).masked_fill(~self.likes, 2.0).argsort(1).argsort(1)
        interactions = self.likes & (chosen < taken.unsqueeze(1))
        self.likes = self.likes[:, interactions.any(0)]
        self.user, item = interactions[:, interactions.any(0)].nonzero().unbind(1)
        return Samples(self.user.unsqueeze(1).float(), item, "multiclass", [str(i) for i in range(self.likes.shape[1])])

    def encode(self, samples: Samples) -> tuple[Split, Split, Split]:
        train = self.rows["train"]
        known = torch.zeros_like(self.likes)
        known[self.user[train], samples.target[train]] = True
        made = []
        for name, rows in self.rows.items():
            user, item = self.user[rows], samples.target[rows]
            itself = one_hot(item, self.likes.shape[1]).bool()
            inputs = one_hot(user, self.users) if self.represent == "id" else known[user] & ~itself
            left_out = (known if name == "train" else self.likes)[user] & ~itself
            made.append({"inputs": inputs.float(), "target": item, "left_out": left_out})
        first, second, third = made
        return first, second, third


class LabelSets(Synthetic):
    r"""Texts with several labels each of very many: extreme multi-label classification by the labels' own features.

    Labels lie in clusters, with :math:`e_l` a unit vector near its cluster's centre; a sample takes 1 to ``max_labels`` labels of one cluster, popular
    ones more often, and

    .. math:: x = \frac{1}{\sqrt{|P|}} \sum_{l \in P} e_l + \text{noise} \cdot \varepsilon / \sqrt{d}

    Args:
        size: samples, over all splits.
        labels: L, how many.
        clusters: of the labels.
        max_labels: a sample has 1 … so many, all equally likely.
        dimensions: *d* of texts and labels.
        spread: how far labels lie from their cluster's centre, in its length.
        popularity: exponent of the labels' power law.
        noise: length of the noise on a text.
        **common: see :class:`~components.data.synthetic.Synthetic`.

    Raises:
        ValueError: an argument out of its range.

    Source:
        The setting: Gupta et al., "Dual-Encoders for Extreme Multi-Label Classification", ICLR 2024, arXiv:2310.10636.
    """

    def __init__(
        self,
        *,
        size: int = 3000,
        labels: int = 300,
        clusters: int = 15,
        max_labels: int = 10,
        dimensions: int = 32,
        spread: float = 1.0,
        popularity: float = 0.7,
        noise: float = 0.5,
        **common: Any,
    ) -> None:
        super().__init__(size=size, standardise=False, **common)
        require(clusters >= 1 and labels >= 2 * clusters, "labels must be at least twice the clusters", [labels, clusters])
        require(1 <= max_labels <= labels // clusters, f"max_labels must be in 1 … {labels // clusters} (the labels of a cluster)", max_labels)
        require(dimensions >= 2, "dimensions must be >= 2", dimensions)
        require(min(spread, popularity, noise) >= 0, "spread, popularity and noise must be >= 0", [spread, popularity, noise])
        self.labels, self.clusters, self.max_labels, self.dimensions = labels, clusters, max_labels, dimensions
        self.spread, self.popularity, self.noise = spread, popularity, noise

    def read(self) -> Samples:
        generator = self.generator()
        cluster_of = torch.arange(self.labels) % self.clusters
        centres, own = (normalize(torch.randn(n, self.dimensions, generator=generator), dim=1) for n in (self.clusters, self.labels))
        self.item_features = normalize(centres[cluster_of] + self.spread * own, dim=1)
        rank = 1.0 + torch.randperm(self.labels, generator=generator)
        cluster = torch.randint(self.clusters, (self.total,), generator=generator)
        weight = rank.pow(-self.popularity).masked_fill(cluster.unsqueeze(1) != cluster_of, 0.0)
        drawn = torch.multinomial(weight, self.max_labels, generator=generator)
        count = torch.randint(1, self.max_labels + 1, (self.total, 1), generator=generator)
        target = torch.zeros(self.total, self.labels, dtype=torch.long).scatter(1, drawn, (torch.arange(self.max_labels) < count).long())
        noise = self.noise * torch.randn(self.total, self.dimensions, generator=generator) / self.dimensions**0.5
        inputs = target.float() @ self.item_features / count.sqrt() + noise
        return Samples(inputs, target, "multilabel", [str(i) for i in range(self.labels)], strata=torch.zeros(self.total))

    def facts(self) -> dict[str, Any]:
        return super().facts() | ({"item_features": self.item_features.tolist()} if self.splits else {})


class QueryDocuments(Synthetic):
    r"""Questions, each with one document among many, and some questions near to everything: their scores are not comparable as they come.

    Documents lie in clusters about a common direction *g*; a question is its document, noise, and an amount of *g* of its own:

    .. math:: d_j = c_{k(j)} + \text{spread} \cdot v_j + g, \qquad x = d_j + \text{noise} \cdot \varepsilon + \text{offset} \cdot o\, g, \quad o \sim N(0, 1)

    *c*, *v*, :math:`\varepsilon` and *g* have length 1 or so. The larger *o*, the larger all of a question's products with documents: what a loss
    over a question's own candidates does not see.

    Args:
        size: questions, over all splits.
        documents: how many; the same number of questions each, up to rounding.
        clusters: of the documents.
        dimensions: of questions and documents.
        spread: how far documents lie from their cluster's centre.
        noise: length of a question's noise.
        offset: standard deviation of a question's amount of the common direction.
        **common: see :class:`~components.data.synthetic.Synthetic`.

    Raises:
        ValueError: an argument out of its range.

    Source:
        The setting: "Optimizing What Matters: AUC-Driven Learning for Robust Neural Retrieval", 2025, arXiv:2510.00137.
    """

    def __init__(
        self,
        *,
        size: int = 3000,
        documents: int = 200,
        clusters: int = 20,
        dimensions: int = 32,
        spread: float = 1.0,
        noise: float = 1.0,
        offset: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(size=size, standardise=False, **common)
        require(2 <= documents <= size // 4, f"documents must be in 2 … {size // 4} (a quarter of size)", documents)
        require(1 <= clusters <= documents, f"clusters must be in 1 … {documents} (the documents)", clusters)
        require(dimensions >= 2, "dimensions must be >= 2", dimensions)
        require(min(spread, noise, offset) >= 0, "spread, noise and offset must be >= 0", [spread, noise, offset])
        self.documents, self.clusters, self.dimensions = documents, clusters, dimensions
        self.spread, self.noise, self.offset = spread, noise, offset

    def read(self) -> Samples:
        generator = self.generator()

        def vectors(n: int) -> Tensor:
            return torch.randn(n, self.dimensions, generator=generator) / self.dimensions**0.5

        common, centres = normalize(vectors(1), dim=1), vectors(self.clusters)
        self.item_features = centres[torch.arange(self.documents) % self.clusters] + self.spread * vectors(self.documents) + common
        target = torch.arange(self.total) % self.documents
        amount = self.offset * torch.randn(self.total, 1, generator=generator)
        inputs = self.item_features[target] + self.noise * vectors(self.total) + amount * common
        return Samples(inputs, target, "multiclass", [str(i) for i in range(self.documents)])

    def facts(self) -> dict[str, Any]:
        return super().facts() | ({"item_features": self.item_features.tolist()} if self.splits else {})


class Auctions(Synthetic):
    r"""Ad auctions: the features of *n* ads, their bids, and whether each would be clicked; the true click rates are known.

    .. math:: p = \mathrm{sigmoid}\big(\text{base} + \text{linear} \cdot w \cdot x + \text{curved} \cdot (x^\top A x) / \sqrt{d}\big), \qquad
              b = e^{\text{bid\_spread} \cdot (\rho\, u \cdot x + \sqrt{1 - \rho^2}\, \varepsilon)}

    with Gaussian *x*, unit vectors *w* and *u*, and *A* of Gaussian entries, scaled by :math:`\sqrt{d}`: what is curved a linear model cannot fit.
    With :math:`\rho > 0` bids follow the features: high bids come from one side of the space, and errors cost more there.

    Args:
        size: auctions, over all splits.
        ads: n, in each auction.
        dimensions: *d* of an ad's features.
        base: log odds of a click about the middle.
        linear, curved: how much of the log odds is linear, and quadratic.
        bid_spread: standard deviation of log bids.
        bids_follow: :math:`\rho`, correlation of log bids with a direction of the features, in [0, 1].
        **common: see :class:`~components.data.synthetic.Synthetic`.

    Raises:
        ValueError: an argument out of its range.

    Source:
        The setting: Lyu et al., "Pairwise Ranking Losses of Click-Through Rates Prediction for Welfare Maximization in Ad Auctions", ICML 2023,
        arXiv:2306.01799.
    """

    def __init__(
        self,
        *,
        size: int = 1500,
        ads: int = 10,
        dimensions: int = 5,
        base: float = -2.0,
        linear: float = 1.0,
        curved: float = 1.0,
        bid_spread: float = 1.0,
        bids_follow: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(size=size, standardise=False, **common)
        require(ads >= 2, "ads must be >= 2", ads)
        require(dimensions >= 1, "dimensions must be >= 1", dimensions)
        require(bid_spread >= 0, "bid_spread must be >= 0", bid_spread)
        require(0 <= bids_follow <= 1, "bids_follow must be in [0, 1]", bids_follow)
        self.ads, self.dimensions, self.base, self.linear, self.curved = ads, dimensions, base, linear, curved
        self.bid_spread, self.bids_follow = bid_spread, bids_follow

    def read(self) -> Samples:
        generator = self.generator()
        d = self.dimensions
        x = torch.randn(self.total, self.ads, d, generator=generator)
        direction = normalize(torch.randn(d, generator=generator), dim=0)
        curve = torch.randn(d, d, generator=generator) / d**0.5
        odds = self.base + self.linear * x @ direction + self.curved * ((x @ curve) * x).sum(-1) / d**0.5
        self.click_rate = odds.sigmoid()
        own = torch.randn(self.total, self.ads, generator=generator)
        clicks = (torch.rand(self.total, self.ads, generator=generator) < self.click_rate).long()
        followed = x @ normalize(torch.randn(d, generator=generator), dim=0)
        self.bids = (self.bid_spread * (self.bids_follow * followed + (1 - self.bids_follow**2) ** 0.5 * own)).exp()
        return Samples(x.flatten(1), clicks, "multilabel", [f"ad {i}" for i in range(self.ads)], strata=torch.zeros(self.total))

    def encode(self, samples: Samples) -> tuple[Split, Split, Split]:
        parts = zip(super().encode(samples), self.rows.values(), strict=True)
        first, second, third = (split | {"bids": self.bids[rows], "click_rate": self.click_rate[rows]} for split, rows in parts)
        return first, second, third


class FeatureCrosses(Synthetic):
    r"""Clicks whose log odds are products of features: a sum of crosses, one of each of several orders.

    .. math:: \log \frac{p}{1 - p} = \frac{\text{scale}}{\sqrt{|K|}} \sum_{k \in K} \prod_{f \in F_k} x_f, \qquad |F_k| = k

    Features are :math:`\pm 1` times a number in [1/2, 3/2], so that a product of any number of them is of the size of one; the sets :math:`F_k` are
    drawn.

    Args:
        size: impressions, over all splits.
        features: how many.
        orders: K, the number of features in each product.
        scale: standard deviation of the log odds, about.
        **common: see :class:`~components.data.synthetic.Synthetic`.

    Raises:
        ValueError: an argument out of its range.

    Source:
        The setting: Li et al., "FCN: Fusing Exponential and Linear Cross Network for Click-Through Rate Prediction", 2024, arXiv:2407.13349.
    """

    def __init__(self, *, size: int = 6000, features: int = 12, orders: Sequence[int] = (2, 3, 4), scale: float = 3.0, **common: Any) -> None:
        super().__init__(size=size, standardise=False, **common)
        require(features >= 1, "features must be >= 1", features)
        require(len(orders) >= 1 and min(orders) >= 1 and max(orders) <= features, f"orders must be a list of numbers in 1 … {features}", list(orders))
        require(scale > 0, "scale must be > 0", scale)
        self.features, self.orders, self.scale = features, list(orders), scale

    def read(self) -> Samples:
        generator = self.generator()
        sign = 2.0 * torch.randint(2, (self.total, self.features), generator=generator) - 1
        x = sign * (0.5 + torch.rand(self.total, self.features, generator=generator))
        crosses = [x[:, torch.randperm(self.features, generator=generator)[:order]].prod(1) for order in self.orders]
        odds = self.scale * torch.stack(crosses).sum(0) / len(self.orders) ** 0.5
        target = (torch.rand(self.total, generator=generator) < odds.sigmoid()).long()
        return Samples(x, target, "multiclass", ["no click", "click"])
