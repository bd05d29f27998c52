"""Prompts that begin alike: their common beginnings are run once.

Two ways, because prompts share at two scales. A *trunk* (an instruction, few-shot examples) begins so many
texts that its keys and values are computed once and given to every batch of them. A *head* (a question) is
shared by the few texts of one *row*: the row holds the head once, then each text's own *tail*, and a mask
lets a tail see the trunk, its head and itself.

And texts of which few positions are wanted: the highest block runs at those alone (`narrowed`).
"""

from contrans_dist.prefixes.groups import Group, Row, batch_rows, plan_groups
from contrans_dist.prefixes.narrowing import narrowed
from contrans_dist.prefixes.packing import Packed, pack
from contrans_dist.prefixes.support import can_narrow, can_share, plan_for
from contrans_dist.prefixes.trunks import Trunk

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
]
