"""The harness's model interface over whatever answers; importing this imports the harness."""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import LM

from contrans_dist.benchmarks.lm_eval.answering import Answer

Answering = Callable[[Sequence[Any]], Sequence[Answer]]
"""Harness `Instance`s in, an answer to each out."""


class EngineLM(LM):  # type: ignore[misc]
    """A model that the harness can evaluate: `answer` says what it answers."""

    def __init__(self, answer: Answering) -> None:
        super().__init__()
        self.answer = answer

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float | None, bool | None]]:
        """(log-probability of the continuation, whether greedy decoding would write it) of each request."""
        return [(answer.logprob, answer.greedy) for answer in self.answer(requests)]

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float | None]:
        """The log-probability of each whole text."""
        return [answer.logprob for answer in self.answer(requests)]

    def generate_until(self, requests: list[Any], **_: Any) -> list[str | None]:
        """The text that follows each context."""
        return [answer.text for answer in self.answer(requests)]
