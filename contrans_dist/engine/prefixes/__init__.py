"""Prompts that begin alike: their common beginnings are run once.

Two ways, because prompts share at two scales. A *trunk* (an instruction, few-shot examples) begins so many
texts that its keys and values are computed once and given to every batch of them. A *row* holds a few texts
one after the other, in the order of their tokens, each from where it leaves the one before it (the choices of
a question, say); a mask lets each see the trunk and its own tokens alone.

And texts of which few positions are wanted: the highest block runs at those alone (`narrowed`).
"""

from contrans_dist.engine.prefixes.groups import Group, Row, batch_rows, plan_groups
from contrans_dist.engine.prefixes.narrowing import narrowed
from contrans_dist.engine.prefixes.packing import Packed, pack
from contrans_dist.engine.prefixes.support import can_narrow, can_share, plan_for, plan_within
from contrans_dist.engine.prefixes.trunks import Trunk

__all__ = [
    "Group",
    "Packed",
    "Row",
    "Trunk",
    "batch_rows",
    "can_narrow",
    "can_share",
    "narrowed",
    "pack",
    "plan_for",
    "plan_groups",
    "plan_within",
]
