"""The block at which the target is steered with its own vectors: by rule, by name, or by trial."""

from contrans_dist.config import Recipe
from contrans_dist.console import note
from contrans_dist.evaluation.block_candidates import target_blocks
from contrans_dist.evaluation.block_trials import try_blocks
from contrans_dist.evaluation.sides import Vectors
from contrans_dist.models import matched_depth
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.block_choice import CHOICE, BlockChoice, TriedBlock
from contrans_dist.store.location import Location
from contrans_dist.store.provenance import made_by
from contrans_dist.store.results import write_file
from contrans_dist.store.trials import Trials


def own_block(recipe: Recipe, states: ActivationSet, own: Vectors, out: Location) -> int:
    """The block that a recipe without a source steers; one that was tried for is told in `selection/`.

    Args:
        recipe: With the places of its files; `map.blocks` says how the block is chosen (`check_choice`).
        states: The target's, of the contrast texts.
        own: The target's vectors, by concept.
        out: The run's folder; trials and choice go to `selection/`.
    """
    file = out / CHOICE
    file.delete()  # of earlier settings
    if recipe.blocks != "best":
        return states.blocks[-1]  # the only one that was harvested
    blocks = {str(block): block for block in target_blocks(states.blocks, states.n_blocks)}
    by_block = {
        name: {concept: vector.only(block) for concept, vector in own.items()}
        for name, block in blocks.items()
    }
    tried = try_blocks(recipe, by_block, own, states, out)
    if tried.untold:
        block = matched_depth(states.n_blocks)
        note(f"block {block}, at three quarters of the depth: {tried.untold}")
        return block
    best = tried.best()
    chosen = blocks[best.condition]
    note(
        f"block {chosen} chosen among {len(blocks)} on {tried.on}: {tried.trials.criterion} "
        f"{best.score:.2f} at strength {best.strength:g}"
    )
    content = {
        **tried.trials.model_dump(include=set(Trials.model_fields)),
        "tried_on": tried.on,
        "chosen": chosen,
        "strength": best.strength,
        "candidates": [
            TriedBlock(block=blocks[trial.condition], **trial.model_dump(exclude={"condition"}))
            for trial in tried.steered()
        ],
        **made_by(),
    }
    write_file(file, BlockChoice.model_validate(content))
    return chosen
