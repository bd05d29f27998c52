"""Ray's tasks and actors without a process of their own, for tests of something else than the pool.

A process that loads torch and transformers takes five seconds to start. The pool itself, and the drivers on
it, run in processes in test_pool, test_harvest, test_evaluate, test_assess and test_jobs.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from contrans_dist.distributed import actors, answers, crew, pool, tasks


@contextmanager
def ray_here(*modules: ModuleType) -> Iterator[None]:
    """What these modules ask of Ray is done in this process, where a call is done when it returns.

    Without modules: the actors of every driver. What would travel to a process and back is serialised as Ray
    does it.
    """
    logger = logging.getLogger("contrans_dist")
    handlers = list(logger.handlers)
    here = SimpleNamespace(
        remote=_remote, put=_carried, get=_get, wait=_wait, kill=lambda _actor, no_restart: None,
        is_initialized=ray.is_initialized, cluster_resources=ray.cluster_resources, method=ray.method,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for module in modules or (actors, answers, crew, pool, tasks):
            patch.setattr(module, "ray", here)
        try:
            yield
        finally:
            logger.handlers[:] = handlers  # an actor adds its own, for the whole life of its process


def _carried(value: Any) -> Any:
    return ray.cloudpickle.loads(ray.cloudpickle.dumps(value))


def _remote(what: Any = None, **_options: Any) -> Any:
    """A class of actors, or a function."""
    if what is None:
        return _remote
    if isinstance(what, type):
        return _Class(what)
    return SimpleNamespace(remote=lambda *arguments: _Done(what, arguments))


class _Class:
    """An actor's class, as `ray.remote` gives it."""

    def __init__(self, actor_class: type) -> None:
        self.actor_class = actor_class

    def options(self, **_resources: Any) -> "_Class":
        return self

    def remote(self, *arguments: Any) -> "_Actor":
        return _Actor(self.actor_class(*_carried(arguments)))


class _Actor:
    """A handle to an actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)
        return SimpleNamespace(remote=lambda *arguments: _Done(method, arguments))


class _Done:
    """A reference to what a call returned or raised."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
        self._error: RayTaskError | None = None
        given = [each.result() if isinstance(each, _Done) else _carried(each) for each in arguments]
        try:
            self._value = _carried(function(*given))
        except Exception as error:
            self._error = RayTaskError(function.__name__, str(error), _carried(error))

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


def _get(references: _Done | list[_Done]) -> Any:
    return [each.result() for each in references] if isinstance(references, list) else references.result()


def _wait(
    references: Sequence[_Done], num_returns: int = 1, timeout: float | None = None
) -> tuple[list[_Done], list[_Done]]:
    return list(references[:num_returns]), list(references[num_returns:])
