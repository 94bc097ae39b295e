from sweeps.autolrs.callback import AutoLRS

__all__ = ["AutoLRS"]
