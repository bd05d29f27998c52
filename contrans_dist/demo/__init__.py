"""The demo: small bundled models and the text world they live in. Importing it needs no torch.

`source` and `target` know feelings alone. The family, of one architecture and one tokenizer, knows facts and
remarks too: `weak` and `strong` base models, their `-instruct` models (two of the weak one), earlier
checkpoints of the weak one (`weak-step400` and so on), and a `classifier` of unkind remarks, which is no
language model.

Imports: nothing of ours.
"""

from pathlib import Path

from contrans_dist.demo import world
from contrans_dist.demo.events import EMOTIONS
from contrans_dist.demo.family import write_family
from contrans_dist.demo.world import TEMPLATE

FAMILY = (
    *("weak", "weak-instruct", "weak-instruct-b", "strong", "strong-instruct"),
    *("weak-step400", "weak-step600", "weak-step800"),
)
CLASSIFIER = "classifier"

MODELS: dict[str, Path] = {
    name: Path(__file__).parent / "models" / name for name in ("source", "target", *FAMILY, CLASSIFIER)
}


def write_texts(folder: Path, seed: int = 0, *, training_texts: int = 0) -> dict[str, Path]:
    """Write the texts of the models' worlds into a folder.

    Args:
        folder: Is made where it is missing.
        seed: Another seed draws other texts; whether an event is held out does not depend on it.
        training_texts: Write so many texts of those that the models were trained on, too.

    Returns:
        The JSONL files of the emotion world by name: `corpus`, `contrast`, `validation`, `evaluation` (and
        `training`). The family's files lie beside them, see `family.write_family`.
    """
    write_family(folder, seed)
    return world.write_texts(folder, seed, training_texts=training_texts)


__all__ = ["CLASSIFIER", "EMOTIONS", "FAMILY", "MODELS", "TEMPLATE", "write_family", "write_texts"]
