"""The harness's side, in the driver alone: tasks are loaded once and judged anew for each condition."""

from __future__ import annotations

import logging
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contrans_dist.benchmarks.identity import content_hash
from contrans_dist.benchmarks.lm_eval.answering import Answer
from contrans_dist.benchmarks.lm_eval.documents import Document, document, request_of
from contrans_dist.errors import UserError

if TYPE_CHECKING:
    from contrans_dist.benchmarks.lm_eval import HarnessEvaluation

_BOOTSTRAPS = 1000
"""Resamples behind a standard error without a formula; the harness's 100,000 take minutes a condition."""
_JUDGING = (
    "output_type", "doc_to_target", "doc_to_choice", "process_results", "metric_list", "filter_list",
    "repeats",
)  # fmt: skip


def require_harness() -> None:
    """UserError where the extra is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError("benchmark lm-eval needs the extra: pip install 'contrans-dist[lm-eval]'") from None


@dataclass(frozen=True)
class _Place:
    """Where the answers to a harness `Instance` are among its document's."""

    document: str
    first: int
    count: int


class Tasks:
    """Loaded tasks with their requests, which are built once: every condition is asked the very same."""

    def __init__(self, loaded: Any, limit: int | None, code: str = "") -> None:
        """`code`: hash of the functions that task files name."""
        self.loaded, self.code = loaded, code
        self.documents: list[Document] = []
        self._places: dict[int, _Place] = {}  # by the id() of an Instance
        for name, task in loaded["tasks"].items():
            with redirect_stderr(StringIO()):  # a bar for every task
                task.build_all_requests(limit=limit)
            of_document: dict[int, list[Any]] = defaultdict(list)
            for instance in task.instances:
                of_document[instance.doc_id].append(instance)
            self.documents += [
                self._document(name, task, number, instances) for number, instances in of_document.items()
            ]
            docs = {number: instances[0].doc for number, instances in of_document.items()}
            # Built again, few-shot examples would be drawn anew and the answers belong to other questions.
            task.build_all_requests = lambda **_: None
            task.doc_iterator = lambda docs=docs, **_: iter(docs.items())

    @classmethod
    def load(cls, settings: HarnessEvaluation) -> Tasks:
        """The tasks that settings name, their few-shot examples drawn as `simple_evaluate` draws them.

        Raises UserError for a task that is not known, cannot be loaded or asks what the engine cannot answer.
        """
        require_harness()
        from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

        with _quiet(), _seeded(DEFAULT_RANDOM_SEED, DEFAULT_OTHER_SEED):
            loaded = _load(settings)
            for name, task in loaded["tasks"].items():
                if getattr(task, "UNSAFE_CODE", False):
                    raise UserError(f"task {name}: runs code that the model wrote, which is not done here")
                shots = task.get_config("num_fewshot")
                if shots is None or (shots != 0 and settings.num_fewshot is not None):
                    task.set_config(key="num_fewshot", value=settings.num_fewshot or 0)
                task.set_fewshot_seed(DEFAULT_OTHER_SEED + settings.seed)
            return cls(loaded, settings.limit, _code(settings.include))

    def evaluate(self, answered: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
        """The harness's own results (its `evaluate`) for the answers to every document, by its id."""
        from lm_eval.evaluator import evaluate

        from contrans_dist.benchmarks.lm_eval.model import EngineLM

        for task in self.loaded["tasks"].values():
            for instance in task.instances:
                instance.resps, instance.filtered_resps = [], {}
        times: Counter[int] = Counter()

        def answer(instances: Sequence[Any]) -> list[Answer]:
            given = []
            for instance in instances:
                place = self._places[id(instance)]
                given.append(answered[place.document][place.first + times[id(instance)] % place.count])
                times[id(instance)] += 1
            return given

        with _quiet(), _one_process(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            return dict(evaluate(lm=EngineLM(answer), task_dict=self.loaded, bootstrap_iters=_BOOTSTRAPS))

    def identity(self) -> dict[str, Any]:
        """What counts beside the documents: the groups' settings, and the code in the folder of tasks."""
        groups = {
            name: [group.aggregate_metric_list, group.child_names, group.version]
            for name, group in self.loaded.get("groups", {}).items()
        }
        return {"groups": content_hash(groups), "code": self.code}

    def leaves(self, name: str) -> list[str]:
        """The tasks of a group, or the task itself."""
        group = self.loaded.get("groups", {}).get(name)
        return [name] if group is None else [task.task_name for task in group.get_all_tasks()]

    @property
    def top_level(self) -> list[str]:
        """The tasks and groups with numbers of their own that are part of no other such group."""
        groups = self.loaded.get("groups", {})
        inner = {child for group in groups.values() for child in group.child_names}
        waiting = [name for name in [*self.loaded["tasks"], *groups] if name not in inner]
        top: list[str] = []
        for name in waiting:  # grows while it is walked
            if name in groups and not groups[name].has_aggregation:
                waiting += groups[name].child_names
            else:
                top.append(name)
        return top

    def _document(self, name: str, task: Any, number: int, instances: list[Any]) -> Document:
        key = f"{name}/{number}"
        repeated: list[Any] = []
        for instance in sorted(instances, key=lambda instance: instance.idx):
            # A text that is not drawn comes out the same each time it is asked for.
            count = (instance.repeats or 1) if request_of(instance).temperature > 0 else 1
            self._places[id(instance)] = _Place(key, len(repeated), count)
            repeated += [instance] * count
        doc = instances[0].doc
        return document(key, name, _scenario(task, doc), repeated, _judged_by(task, doc))


def _load(settings: HarnessEvaluation) -> Any:
    from lm_eval.tasks import TaskManager

    if settings.texts is not None:
        raise UserError("benchmark lm-eval: texts does not apply; tasks bring their own (see include)")
    if settings.include is not None and not Path(settings.include).is_dir():
        raise UserError(f"include: {settings.include} is no folder; expected one with task files")
    # The harness has 14,000 task files; nobody waits for their index who brings all tasks along.
    manager = TaskManager(include_path=settings.include, include_defaults=False)
    if not all(manager.match_tasks([name]) for name in settings.tasks):
        manager = TaskManager(include_path=settings.include)
    names = []
    for wanted in settings.tasks:
        matching = manager.match_tasks([wanted])
        if not matching:
            near = ", ".join(get_close_matches(wanted, manager.all_tasks, 3)) or "none like it"
            raise UserError(f"tasks: lm-evaluation-harness knows no {wanted!r} (there is: {near})")
        names += [name for name in matching if name not in names]
    try:
        return manager.load(names)
    except Exception as error:  # a task file may do anything, its data lie anywhere
        first = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"tasks {', '.join(names)}: not to be loaded: {type(error).__name__}: {first}"
        ) from error


def _scenario(task: Any, doc: Any) -> str:
    """The document's own text, without the task's template: what the leak check looks for."""
    fields = [v for v in doc.values() if isinstance(v, str)] if isinstance(doc, Mapping) else []
    shown = task.doc_to_text(doc)
    if not isinstance(shown, str):  # the place of the right one among several contexts
        return max(fields, key=len, default="")
    shown = shown if shown.strip() else str(task.doc_to_target(doc))
    return max((v for v in fields if v.strip() and v in shown), key=len, default=shown)


def _judged_by(task: Any, doc: Any) -> str:
    """Hash of all that turns a document's answers into numbers, but for the code of functions (`_code`)."""
    from lm_eval import __version__

    judging = {name: task.get_config(name) for name in _JUDGING}
    content = {"harness": __version__, "version": task.VERSION, "judging": judging, "doc": doc}
    return content_hash(content)[:16]


def _code(include: str | None) -> str:
    """Hash of all Python files in a folder of task files; those of the harness go by its version."""
    files = sorted(Path(include).rglob("*.py")) if include is not None else []
    return content_hash([[str(file.relative_to(str(include))), file.read_bytes()] for file in files])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's remarks on what a task file leaves to its defaults."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _seeded(python: int, arrays: int) -> Iterator[None]:
    """The global generators that tasks shuffle by, seeded as the harness seeds them, and put back."""
    before, before_arrays = random.getstate(), np.random.get_state()
    random.seed(python)
    np.random.seed(arrays)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_arrays)


@contextmanager
def _one_process() -> Iterator[None]:
    """Bootstrap in this process: the harness would fork the driver, with all its threads, for each metric."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        os.environ.pop("DISABLE_MULTIPROC")
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before
