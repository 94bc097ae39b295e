"""Every command of docs/schedules.md runs as it stands, one after the other in one directory."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from tests.conftest import REPOSITORY, Result, invoke

PAGE = REPOSITORY / "docs" / "schedules.md"


def test_every_command_of_the_page(workdir: Path, store_template: Path) -> None:
    shutil.copy(store_template, workdir / "mlflow.db")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL) for line in block.splitlines() if line]
    assert len(lines) >= 10 and all(line.startswith("losskit ") for line in lines)
    results: dict[str, Result] = {}
    for line in lines:
        results[line] = invoke(*shlex.split(line)[1:])
        assert results[line].code == 0, f"{line}: {results[line].err}"
    predicted = next(result.out for line, result in results.items() if line.startswith("losskit predict-loss flat cos"))
    assert "AnnealingLaw, fitted to flat, cos" in predicted
