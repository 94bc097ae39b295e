"""Two processes with half of each batch do what one process does with the whole: every task, gloo on the CPU."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ddp_rank import NAMES, run


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of both ranks, started by us as a launcher would."""
    directory = tmp_path_factory.mktemp("ddp")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    started = []
    for rank in range(2):
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        script = [sys.executable, str(Path(__file__).parent / "ddp_rank.py"), str(directory), str(rank)]
        started.append(subprocess.Popen(script, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    try:
        outputs = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(output[-3000:] for output in outputs)
    return [torch.load(directory / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


OF_THEIR_OWN = {
    "density_estimation": "each rank draws noise of its own",
    "probabilistic_segmentation": "each rank draws latents of its own",
    "rejection": "the mean of each rank is over the held-out samples that it has, and both count the same",
}
"""Tasks in which two ranks agree with each other, and one process does something else."""


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_are_one_process(name: str, ranks: list[dict[str, Any]], tmp_path: Path):
    first, second = (results[name] for results in ranks)
    whole = run(name, tmp_path)
    assert first["steps"] == second["steps"] == whole["steps"] == 2
    assert first["rows"] == second["rows"], "the ranks log different values"
    for key, weight in whole["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key]), f"{key} differs between the ranks"
        if name in OF_THEIR_OWN:
            continue
        torch.testing.assert_close(first["weights"][key], weight, msg=lambda text, key=key: f"{key}: {text}")
    assert [step for step, _ in first["rows"]] == [step for step, _ in whole["rows"]]
    for (_, values), (_, expected) in zip(first["rows"], whole["rows"], strict=True):
        if name in OF_THEIR_OWN:
            assert values.keys() == expected.keys()
            continue
        assert values == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert any("val/loss" in values for _, values in first["rows"]) and any("test/loss" in values for _, values in first["rows"])


def test_a_loss_that_diverges_on_one_rank_stops_both(ranks: list[dict[str, Any]]):
    assert ranks[0]["diverged"]["error"] == "the training loss is not finite on another rank"
    assert ranks[1]["diverged"]["error"].startswith("the training loss is not finite at step 1: loss became nan")
