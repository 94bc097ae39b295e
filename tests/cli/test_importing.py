import gc
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from losskit_cli.importing import import_heavy


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "heavy_module_of_a_test.py").write_text("import gc\nCOLLECTING = gc.isenabled()\nKEPT = [[] for _ in range(1000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "heavy_module_of_a_test", raising=False)
    return "heavy_module_of_a_test"


def test_rests_while_importing_and_sets_aside_what_stays(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = gc.get_freeze_count()
    try:
        import_heavy(module)
        assert not sys.modules[module].COLLECTING
        assert gc.isenabled()
        assert gc.get_freeze_count() >= frozen + 1000
    finally:
        gc.unfreeze()


def test_of_what_is_there_already_nothing_is_set_aside(module: str) -> None:
    __import__(module)
    frozen = gc.get_freeze_count()
    import_heavy(module)
    assert gc.get_freeze_count() == frozen


def test_a_failed_import_leaves_the_collector_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module_of_a_test.py").write_text("raise ImportError('no such library')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="no such library"):
        import_heavy("broken_module_of_a_test")
    assert gc.isenabled()
    gc.unfreeze()


def test_training_imports_torch_that_way() -> None:
    """``losskit train --dry-run`` sets torch and Lightning aside, and collects again afterwards."""
    code = """
        import gc, sys
        from losskit_cli.app import run
        assert run(["train", "--dry-run", "data=iris", "model=linear", "--json"]) == 0
        assert gc.isenabled() and gc.get_freeze_count() > 100_000, gc.get_freeze_count()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, stdout=subprocess.DEVNULL)
