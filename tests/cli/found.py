"""A found schedule as AutoLRS writes it (``schedule/found.json``), for tests of what reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def found(total: int = 40, **changed: Any) -> dict[str, Any]:
    """A search with two probes, one of which diverged, that found a warm-up, a jump and a decay."""
    probes = [
        {
            "number": 0, "value": 2.0, "steps": 8, "outcome": 0.9, "diverged": False, "at": [0, 4, 8], "factors": [2.0, 2.0, 0.0],
            "train_steps": [2, 4, 6], "train_losses": [2.0, 1.6, 1.2], "forecast": {"steps": [20, 40], "losses": [1.0, 0.8]},
        },
        {
            "number": 1, "value": 9.0, "steps": 5, "outcome": None, "diverged": True, "at": [0, 5], "factors": [9.0, 9.0],
            "train_steps": [2, 4], "train_losses": [5.0, float("nan")], "forecast": None,
        },
    ]  # fmt: skip
    stage = {"stage": 0, "start": 0, "end": total, "question": "lr", "chosen": 2.0, "why": "best of 2 probes", "probes": probes}
    whole = {
        "version": 1, "method": "cooldown", "lr": 0.1, "total_steps": total, "trained_steps": total, "explored_steps": 13, "diverged": 1,
        "at": [0, total // 10, total // 2, total // 2, total], "factors": [0.0, 2.0, 2.0, 1.0, 0.0], "stages": [stage],
    }  # fmt: skip
    return whole | changed


def write_found(run_dir: Path | str, **changed: Any) -> dict[str, Any]:
    """Put a found schedule into a run's directory."""
    content = found(**changed)
    file = Path(run_dir) / "schedule" / "found.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    return content
