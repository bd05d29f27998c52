"""Any task of lm-evaluation-harness on the steered engine (extra `lm-eval`): the harness asks and judges, the
engine answers, under every intervention at once.

Nothing here imports the harness before it is needed; actors never do.
"""

from contrans_dist.benchmarks.lm_eval.answering import Answer, answers
from contrans_dist.benchmarks.lm_eval.benchmark import HarnessBenchmark
from contrans_dist.benchmarks.lm_eval.documents import Document, Request
from contrans_dist.benchmarks.lm_eval.tasks import engine_lm

__all__ = ["Answer", "Document", "HarnessBenchmark", "Request", "answers", "engine_lm"]
