"""The demo: two small bundled models and the text world they live in. Importing it needs no torch."""

from pathlib import Path

from contrans_dist.demo.events import EMOTIONS
from contrans_dist.demo.world import TEMPLATE, write_texts

MODELS: dict[str, Path] = {name: Path(__file__).parent / "models" / name for name in ("source", "target")}

__all__ = ["EMOTIONS", "MODELS", "TEMPLATE", "write_texts"]
