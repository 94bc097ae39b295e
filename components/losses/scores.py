"""Class scores and their target: what losses share that treat the target's score and the others' differently."""

from __future__ import annotations

from torch import Tensor

from components.losses.base import Loss, at_least_float32, check_target


def checked_scores(loss: Loss, logits: Tensor, target: Tensor) -> Tensor:
    """``logits`` in float32 or more, once they, ``target`` and the loss's class weights are known to fit each other."""
    check_target(logits, target, loss.ignore_index)
    loss.check_weight(logits.shape[1])
    return logits.to(at_least_float32(logits.dtype))


def require_two_classes(logits: Tensor) -> None:
    if logits.shape[1] < 2:
        raise ValueError(f"logits must have two classes or more, but got {logits.shape[1]}")


def score_of_target(scores: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """(N, C, d1, …) -> (N, d1, …), the score of the target; of class 0 where the target is ignored."""
    return scores.gather(1, class_of(target, ignore_index).unsqueeze(1)).squeeze(1)


def without_target(scores: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """(N, C, d1, …) scores with 0 in the target's place, which then has no gradient either."""
    return scores.scatter(1, class_of(target, ignore_index).unsqueeze(1), 0.0)


def class_of(target: Tensor, ignore_index: int) -> Tensor:
    """``target`` with class 0 in the place of what is ignored, so that it can index."""
    return target.masked_fill(target == ignore_index, 0)


def divergence(scores: Tensor, others: Tensor) -> Tensor:
    """KL divergence of the softmax of ``others`` (N, C, d1, …) from that of ``scores``: (N, d1, …).

    Written out: :func:`torch.nn.functional.kl_div` has no batching rule, so many trials at once would run one by one.
    """
    log_p = scores.log_softmax(1)
    return (log_p.exp() * (log_p - others.log_softmax(1))).sum(1)
