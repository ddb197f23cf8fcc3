"""The shipped profile `t4_hybrid` for tests: its clouds replaced by a stand-in on this machine."""

from __future__ import annotations

from tests.paths import PROFILES
from workflow_composer.config.catalogue import CATALOGUE

FALLBACKS = ("deepseek-flash", "claude-sonnet-5-5")


def t4_hybrid(url: str) -> str:
    """Its text with entries that say only where the two fallbacks are asked: at ``url``, with the same keys and prices."""
    text = (PROFILES / "t4_hybrid.yaml").read_text()
    before, models, after = text.partition("\nmodels:\n")
    assert models
    assert all(name in before for name in FALLBACKS)
    entries = []
    for name in FALLBACKS:
        known = CATALOGUE[name]
        prices = f"input_price: {known.input_price}, output_price: {known.output_price}"
        entries.append(f"  {name}: {{base_url: '{url}', api_key_env: {known.api_key_env}, {prices}}}\n")
    return before + models + "".join(entries) + after
