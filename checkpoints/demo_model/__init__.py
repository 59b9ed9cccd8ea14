"""How the demo checkpoint is made: data, training, evaluation. Its model card is README.md."""

from pathlib import Path

CHECKPOINT = Path(__file__).parents[1] / "gemma3-demo"
