"""The harvesting engine: texts in, one row of the residual stream per text and block out.

Only the decoder runs, up to the highest block asked for. A row is gathered on its block's own device inside a
hook, so that the states of all other tokens never leave it, and each batch makes one copy to the host.
"""

from contrans_dist.engine.capture.activations import Activations
from contrans_dist.engine.capture.batches import plan_batches, prepare, truncate
from contrans_dist.engine.capture.engine import capture, capture_ids, deviation, queue_ids

__all__ = [
    "Activations",
    "capture",
    "capture_ids",
    "deviation",
    "plan_batches",
    "prepare",
    "queue_ids",
    "truncate",
]
