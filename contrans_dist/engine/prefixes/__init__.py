"""Prompts that begin alike: their common beginnings are run once.

Two ways, because prompts share at two scales. A *trunk* (an instruction, few-shot examples) begins so many
texts that its keys and values are computed once and given to every batch of them. A *row* holds a few texts
one after the other, in the order of their tokens, each from where it leaves the one before it (the choices of
a question, say); a mask lets each see the trunk and its own tokens alone.
"""

from contrans_dist.engine.prefixes.groups import Group, Limits, Row, batch_rows, plan_groups, rows_apart
from contrans_dist.engine.prefixes.packing import Packed, found_in, pack
from contrans_dist.engine.prefixes.support import can_share, limits_of, plan_for, positions_per_pass
from contrans_dist.engine.prefixes.trunks import Trunk

__all__ = [
    "Group",
    "Limits",
    "Packed",
    "Row",
    "Trunk",
    "batch_rows",
    "can_share",
    "found_in",
    "limits_of",
    "pack",
    "plan_for",
    "plan_groups",
    "positions_per_pass",
    "rows_apart",
]
