"""Importing torch, Lightning and MLflow in three quarters of the time."""

from __future__ import annotations

import gc
import sys
from importlib import import_module


def import_heavy(module: str) -> None:
    """Import ``module``, and with it the large libraries that it brings, with the garbage collector at rest.

    Such an import makes a million objects that stay. The collector would look at all of them time and again, which takes a quarter
    of the import; here they are set aside at its end (``gc.freeze``), so that later collections pass them over as well.
    """
    if module in sys.modules or not gc.isenabled():
        import_module(module)
        return
    gc.disable()
    try:
        import_module(module)
    finally:
        gc.freeze()
        gc.enable()


__all__ = ["import_heavy"]
