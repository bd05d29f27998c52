"""The harness's model interface over whatever answers; importing this imports the harness."""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import LM

from contrans_dist.benchmarks.lm_eval.answering import Answer
from contrans_dist.config import CHAT_DATE
from contrans_dist.models.tokens import rendered

Answering = Callable[[Sequence[Any]], Sequence[Answer]]
"""Harness `Instance`s in, an answer to each out."""


class EngineLM(LM):  # type: ignore[misc]
    """A model that the harness can evaluate: `answer` says what it answers.

    With a tokenizer, `simple_evaluate(..., apply_chat_template=True)` works as well.
    """

    def __init__(self, answer: Answering, tokenizer: Any = None) -> None:
        super().__init__()
        self.answer = answer
        self.tokenizer = tokenizer

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float | None, bool | None]]:
        """(log-probability of the continuation, whether greedy decoding would write it) of each request."""
        return [(answer.logprob, answer.greedy) for answer in self.answer(requests)]

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float | None]:
        """The log-probability of each whole text."""
        return [answer.logprob for answer in self.answer(requests)]

    def generate_until(self, requests: list[Any], **_: Any) -> list[str | None]:
        """The text that follows each context."""
        return [answer.text for answer in self.answer(requests)]

    @property
    def tokenizer_name(self) -> str:
        """By which the harness's cache of requests tells chat templates apart."""
        return str(getattr(self.tokenizer, "name_or_path", "")).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's text, for the harness's records."""
        return getattr(self.tokenizer, "chat_template", None) if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as a prompt, by the tokenizer's own template."""
        (prompt,) = rendered(
            self.tokenizer,
            [chat_history],
            CHAT_DATE,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return prompt
