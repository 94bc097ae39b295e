"""Readable, unique names for runs: ``poly1-digits-s3-brave-owl``."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

ADJECTIVES = (
    "amber", "bold", "brave", "brisk", "calm", "clear", "crisp", "deft", "eager", "fair", "fleet", "fond", "free", "fresh",
    "glad", "grand", "keen", "kind", "light", "lively", "lucid", "merry", "mild", "neat", "noble", "plain", "quick", "quiet",
    "ready", "sharp", "sleek", "sound", "steady", "still", "sunny", "sure", "swift", "tidy", "warm", "wise",
)  # fmt: skip
ANIMALS = (
    "ant", "bear", "bee", "bison", "crane", "crow", "deer", "dove", "eagle", "egret", "elk", "finch", "fox", "frog",
    "gull", "hare", "hawk", "heron", "ibis", "jay", "koi", "lark", "lion", "lynx", "mole", "moth", "newt", "otter",
    "owl", "pika", "puma", "quail", "raven", "robin", "seal", "stork", "swan", "tern", "toad", "vole", "wolf", "wren",
    "yak",
)  # fmt: skip


def run_name(choices: Mapping[str, Any], seed: int) -> str:
    """A name made of the chosen loss, data and seed and two random words (random whatever the seed: the same run twice is two runs)."""
    parts = [str(choices[group]) for group in ("loss", "data") if isinstance(choices.get(group), str)]
    return "-".join([*parts, f"s{seed}", two_words()])


def two_words() -> str:
    """``brave-owl``."""
    return f"{secrets.choice(ADJECTIVES)}-{secrets.choice(ANIMALS)}"
