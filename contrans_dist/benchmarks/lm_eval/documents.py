"""A task's documents, and what the harness asks a model about each: plain data that travels to actors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any, Literal, get_args

from contrans_dist.errors import UserError

Method = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]
"""What the harness can ask for: a continuation's log-likelihood, that of a whole text, or a text."""


@dataclass(frozen=True)
class HarnessRequest:
    """One question to the model; its whole context is the document's `prompt` + `context`."""

    method: Method
    context: str = ""
    continuation: str = ""
    """What is scored; empty for `generate_until`."""
    until: tuple[str, ...] = ()
    """Strings that end a generated text; it is cut before the first."""
    max_new_tokens: int = 0
    temperature: float = 0.0


@dataclass(frozen=True)
class Document:
    """One document of a task with everything that is asked about it: what an evaluation calls an item.

    The answers to one document's requests are compared with each other, so they stay together, under one and
    the same random direction.
    """

    id: str
    """`<task>/<number>`."""
    task: str
    scenario: str
    prompt: str
    """What the contexts of all its requests begin with."""
    requests: tuple[HarnessRequest, ...]
    judged_by: str = ""
    """Hash of what the harness makes of the answers: the document, the task's metrics, the versions."""
    concept: str = ""


def document(key: str, task: str, scenario: str, instances: Sequence[Any], judged_by: str = "") -> Document:
    """The document `key` of the harness's `Instance`s, which ask about it in this order.

    Raises UserError for a request that this engine cannot answer.
    """
    given = [request_of(instance) for instance in instances]
    prompt = commonprefix([request.context for request in given])  # noqa: RUF071 -- characters are meant
    requests = (replace(request, context=request.context.removeprefix(prompt)) for request in given)
    return Document(key, task, scenario, prompt, tuple(requests), judged_by)


def request_of(instance: Any) -> HarnessRequest:
    """A harness `Instance` as plain data. Raises UserError for what this engine cannot answer."""
    task, method, arguments = instance.task_name, instance.request_type, instance.args
    if any(isinstance(argument, dict) and {"visual", "audio"} & set(argument) for argument in arguments):
        raise UserError(f"task {task}: asks about images or sound; expected a task of texts alone")
    if method not in get_args(Method):
        raise UserError(f"task {task}: asks for {method}; expected one of {', '.join(get_args(Method))}")
    if method == "loglikelihood_rolling":
        return HarnessRequest("loglikelihood_rolling", continuation=str(arguments[0]))
    if method == "loglikelihood":
        return HarnessRequest("loglikelihood", str(arguments[0]), str(arguments[1]))
    return _generation(task, str(arguments[0]), arguments[1])


def _generation(task: str, context: str, options: dict[str, Any]) -> HarnessRequest:
    """A `generate_until` request, its options read as the harness's own models read them."""
    from lm_eval.models.utils import normalize_gen_kwargs

    rest = dict(normalize_gen_kwargs(options))
    until, most = rest.pop("until"), rest.pop("max_gen_toks")
    sampled, temperature = rest.pop("do_sample"), float(rest.pop("temperature", 0.0))
    neutral = {"top_p": 1.0, "top_k": 0, "num_beams": 1, "repetition_penalty": 1.0, "num_return_sequences": 1}
    if not sampled:  # the likeliest token is the same whatever else would be cut off
        rest = {name: value for name, value in rest.items() if name not in ("top_p", "top_k", "min_p")}
    refused = [name for name, value in rest.items() if value is not None and value != neutral.get(name)]
    if refused:
        known = "until, max_gen_toks, do_sample, temperature"
        raise UserError(
            f"task {task}, generation_kwargs: {refused[0]}={rest[refused[0]]!r} is not done here; "
            f"expected {known}"
        )
    if sampled and temperature <= 0:
        raise UserError(f"task {task}, generation_kwargs: do_sample needs a temperature above 0")
    return HarnessRequest(
        "generate_until",
        context,
        until=tuple(str(stop) for stop in until if stop),
        max_new_tokens=most,
        temperature=temperature if sampled else 0.0,
    )
