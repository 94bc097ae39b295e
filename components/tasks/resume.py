"""What it takes to go on as if nothing had happened: random state, metrics' state, and where exactly the loops stood.

Lightning restores weights, optimizers and loop counters. Three things are left to do, and they are here:

* the random state of every generator that a step may draw from, of each rank;
* what training metrics have gathered, which their ``state_dict`` leaves out;
* *after what* the checkpoint was written. One written at the end of a training batch comes before what follows the batch: a
  validation that is due, the end of the epoch. Lightning takes those for done when it resumes and leaves them out;
  :func:`settle_loops` writes the counters such that they are made up for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
import torch

from components.random_state import set_seed


def settle_loops(loops: dict[str, Any], trainer: lightning.Trainer) -> None:
    """Rewrite the fit loop's counters in a checkpoint so that a resumed run does what was still to be done, once.

    Args:
        loops: ``checkpoint["loops"]``, changed in place.
        trainer: the trainer that writes the checkpoint.
    """
    state = loops["fit_loop"]
    batches, validation = state["epoch_loop.batch_progress"], state["epoch_loop.val_loop.batch_progress"]
    at_batch_end = batches["current"]["processed"] == batches["current"]["ready"] == batches["current"]["completed"] + 1
    due = False
    if at_batch_end:
        for counts in (batches["total"], batches["current"]):
            counts["completed"] = counts["processed"]
        epoch_loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        due = fetcher is not None and epoch_loop._should_check_val_fx(fetcher)
        if not due and not epoch_loop._should_accumulate():
            state["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    if due or validation["total"]["ready"] != validation["total"]["completed"]:
        done = validation["total"]["completed"]
        validation["total"].update(ready=done + 1, started=done + 1, processed=done)  # reads as: stopped in the middle …
        validation["current"].update(ready=0, started=0, processed=0, completed=0)  # … of its first batch
        validation["is_last_batch"] = False


def open_last_step(checkpoint: Mapping[str, Any], trainer: lightning.Trainer) -> int | None:
    """Keep the fit loop from leaving at once when the checkpoint is of the last of ``max_steps`` but its epoch was not closed.

    Returns:
        The limit to put back in :func:`close_last_step`, or None if there is nothing to make up for.
    """
    epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    limit = trainer.max_steps
    if limit == -1 or checkpoint["global_step"] < limit or epoch["processed"] == epoch["started"]:
        return None
    trainer.fit_loop.epoch_loop.max_steps = checkpoint["global_step"] + 1
    return limit


def close_last_step(trainer: lightning.Trainer, limit: int) -> None:
    """What follows the last step: a validation if it is due, the end of the epoch."""
    fit_loop = trainer.fit_loop
    epoch_loop = fit_loop.epoch_loop
    epoch_loop.max_steps = limit
    epoch_loop._skip_next_val = not epoch_loop.val_loop.restarted_mid_evaluation
    assert fit_loop._data_fetcher is not None
    epoch_loop.on_advance_end(fit_loop._data_fetcher)
    epoch_loop._batches_that_stepped = epoch_loop.global_step
    fit_loop.on_advance_end()


def metric_state(metric: Any) -> dict[str, Any]:
    """A torchmetrics metric's accumulated state as plain tensors (its own ``state_dict`` leaves out what is not persistent)."""
    return {"updates": metric._update_count, "states": {name: getattr(metric, name) for name in metric._defaults}}


def load_metric_state(metric: Any, state: Mapping[str, Any]) -> None:
    metric._update_count = state["updates"]
    for name, value in state["states"].items():
        setattr(metric, name, value)


def draw_otherwise(rank: int) -> None:
    """Let a further rank draw other random numbers than the first: all of them were seeded alike, so that they build the same."""
    if rank:
        set_seed((torch.initial_seed() + 1_000_003 * rank) % (1 << 32))
