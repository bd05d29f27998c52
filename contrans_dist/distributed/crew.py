"""The actors of one call of the pool: who does what, who is lost, who hangs; what becomes of each task."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any

import ray
from ray.exceptions import RayError

from contrans_dist.console import count_of, note
from contrans_dist.distributed.actors import Actors
from contrans_dist.distributed.cluster import Hope
from contrans_dist.distributed.watch import watch
from contrans_dist.distributed.workers import MAX_ATTEMPTS, Given, Outcome, Task, Worker
from contrans_dist.errors import RunError, UserError
from contrans_dist.store.patience import PAUSES, pause

RETRY_SECONDS = 1.0
LOOK_SECONDS = 2.0
"""Between two looks at what hangs, and at the nodes that there are."""
_TIMES_LONGER = 5
"""Than the longest of its like, until a task is taken to hang."""
_HANG_SECONDS = 60.0
"""No task is taken to hang before."""
_FEWEST_LIKE = 3
_SILENT_SECONDS = 120.0
"""Without a word of how far its task is, until an actor is taken to hang."""
_TIMES_MORE = 4
"""So many times longer still, and its actor is started anew: there may be no other."""


@dataclass
class Crew:
    """The actors of one call of the pool, and what is still to be done."""

    actors: Actors
    slots: int
    """Tasks that an actor has at a time."""
    queue: deque[Task]
    workers: list[Worker] = field(default_factory=list)
    running: dict[Any, Worker] = field(default_factory=dict)
    """Who is at what, by the reference of the result to come."""
    common: tuple[Any, ...] = ()
    """Further arguments of every `run`."""
    starting: dict[Any, Worker] = field(default_factory=dict)
    """By the reference that tells when it is up."""
    resting: list[tuple[float, Worker]] = field(default_factory=list)
    """(time to ask again, worker) for actors that could not be reached"""
    attempts: dict[str, int] = field(default_factory=dict)
    """Failures so far, by name of the task."""
    settled: set[str] = field(default_factory=set)
    """Names of the tasks that are done, or given up."""
    longest: float = 0.0
    """Seconds that the longest task took."""
    slowest: float = 0.0
    """Most seconds for a unit of work."""
    timed: int = 0
    """Tasks that these two are of."""
    outcome: Outcome = field(default_factory=Outcome)
    dead: str = ""
    hope: Hope = field(default_factory=Hope)
    unanswered: int = 0
    """Since the last task that was done: failures for want of an answer of a server or store, and actors that
    were started anew."""
    on_progress: Callable[[float], None] | None = None
    alike: bool = True
    """Whether tasks take about as long as their like; else one hangs when its actor says nothing."""

    def hire(self, worker: Worker) -> None:
        self.workers.append(worker)
        self.start(worker)

    def start(self, worker: Worker) -> None:
        if worker.actor is None:
            worker.actor = self.actors.another()
        self.starting[worker.actor.ready.remote()] = worker

    def rest(self, worker: Worker, seconds: float | None = None) -> None:
        worker.up = worker.ending = worker.leaving = False
        worker.question = None
        self.resting.append((time.monotonic() + (RETRY_SECONDS if seconds is None else seconds), worker))

    def wake(self) -> None:
        now = time.monotonic()
        due = [worker for moment, worker in self.resting if moment <= now]
        self.resting = [(moment, worker) for moment, worker in self.resting if moment > now]
        for worker in due:
            self.start(worker)

    def give(self) -> None:
        """Hand out tasks, the least busy actors first."""
        with_room = (w.has_room(self.slots, self.attempts) for w in self.workers)
        free = [(len(self.workers[i].running), i) for i, room in enumerate(with_room) if room]
        heapify(free)
        while self.queue and free:
            task = self.queue[0]
            if task.name in self.settled:
                self.queue.popleft()
                continue
            busy, i = free[0]
            if busy and self.attempts.get(task.name):
                return  # it runs alone
            self._hand(self.workers[i], self.queue.popleft())
            heappop(free)
            if self.workers[i].has_room(self.slots, self.attempts):
                heappush(free, (busy + 1, i))

    def _hand(self, worker: Worker, task: Task) -> None:
        reference = worker.actor.run.remote(task.payload, *self.common)
        worker.running[reference] = Given(task, time.monotonic())
        self.running[reference] = worker

    def taken(self, worker: Worker, reference: Any) -> Given:
        """What an actor was given, which it has answered."""
        del self.running[reference]
        worker.told = 0.0
        return worker.running.pop(reference)

    def ask(self) -> None:
        """How far the running tasks are; of an actor that does not say so now, what it said last."""
        if self.on_progress is None or not self.running:
            return
        for worker in self.workers:
            if worker.up and worker.running and worker.question is None:
                worker.question = worker.actor.progress.remote(), time.monotonic()
        pending = {worker.question[0]: worker for worker in self.workers if worker.question is not None}
        answered, _ = ray.wait(list(pending), num_returns=len(pending), timeout=RETRY_SECONDS)
        for reference in answered:
            pending[reference].question = None
            with suppress(RayError):
                pending[reference].told = ray.get(reference)
        self.on_progress(sum(worker.told for worker in self.workers if worker.running))

    def watch(self) -> None:
        """Give to another actor what hangs; start anew the actor of what hangs for good."""
        now = time.monotonic()
        for worker in self.workers:
            for given in [] if worker.ending else list(worker.running.values()):
                seconds, most = self._waited(worker, given, now)
                if given.task.name in self.settled or seconds < most:
                    continue
                if not given.hangs:
                    given.hangs = True
                    self._give_again(given.task, self._verdict(seconds), _TIMES_MORE * most - seconds)
                elif seconds > _TIMES_MORE * most and not worker.ending:
                    note(f"{given.task.name}: {self._verdict(seconds)}; its actor is started anew")
                    self.replace(worker)
                    self.unanswered += 1
                    if self.unanswered >= MAX_ATTEMPTS * len(self.workers):
                        raise RunError(
                            f"{given.task.name}: {self._verdict(seconds)}, and no other task was done since; "
                            "is what they read or write silent? Run the same command again to go on"
                        )

    def look(self) -> None:
        """Add actors where nodes have joined; let those go, when they are done, whose node is about to."""
        nodes = self.actors.nodes()
        leaving = {node.id for node in nodes if node.leaving}
        for worker in [w for w in self.workers if w.up and w.node in leaving]:
            if not worker.leaving:
                worker.leaving = True
                note("a node of the cluster is about to go: its actor gets nothing more to do")
            if not worker.running and not worker.ending:
                self.actors.let_go(worker.actor)
                self.workers.remove(worker)
        watch().actors = sum(worker.up for worker in self.workers)
        most = self.actors.size.room(nodes)
        added = min(most - len(self.workers), len(self.queue))
        for _ in range(added):
            self.hire(Worker(None))
        if added > 0 and self.outcome.began:
            note(f"the cluster has room for more: {count_of(len(self.workers), 'actor')} now")
        self.hope.look(self.actors.size.fits(nodes) or any(worker.up for worker in self.workers))

    def _give_again(self, task: Task, verdict: str, left: float) -> None:
        """A second copy of a task that hangs, but no third: it may be the task, not the actor."""
        if sum(task.name == given.task.name for w in self.workers for given in w.running.values()) > 1:
            return
        self.queue.appendleft(task)
        others = any(w.up and not any(given.hangs for given in w.running.values()) for w in self.workers)
        then = "another actor gets it as well" if others else f"its actor is started anew in {left:,.0f} s"
        note(f"{task.name}: {verdict}; {then}")

    def _waited(self, worker: Worker, given: Given, now: float) -> tuple[float, float]:
        """Seconds that a task is waited for, and those after which it is taken to hang."""
        if not self.alike:
            return (now - worker.question[1] if worker.question else 0.0), _SILENT_SECONDS
        if self.timed < _FEWEST_LIKE:
            return 0.0, _HANG_SECONDS
        usual = max(self.longest, self.slowest * given.task.size)
        return now - given.since, max(_HANG_SECONDS, _TIMES_LONGER * usual)

    def _verdict(self, seconds: float) -> str:
        if not self.alike:
            return f"its actor has said nothing for {seconds:,.0f} s"
        return f"no answer after {seconds:,.0f} s, where its like took at most {self.longest:,.1f} s"

    def replace(self, worker: Worker) -> None:
        """End an actor's process, stopped or not; another takes its place."""
        worker.ending = True
        ray.kill(worker.actor)

    def settle(self, given: Given, node: str = "") -> None:
        """A first answer is there: those who hang at the same task are not waited for."""
        self.settled.add(given.task.name)
        self.unanswered = 0
        seconds = time.monotonic() - given.since
        watch().done(given.task.name, seconds, node)
        self.longest = max(self.longest, seconds)
        self.slowest = max(self.slowest, seconds / max(given.task.size, 1e-9))
        self.timed += 1
        for worker in self.workers:
            late = any(given.hangs and given.task.name in self.settled for given in worker.running.values())
            if late and not worker.ending:
                self.replace(worker)

    def refuse(self, worker: Worker, reason: str, final: bool) -> None:
        """An actor could not be constructed: another try after a pause, unless it would not help."""
        worker.refused += 1
        worker.given_up = final or worker.refused > len(PAUSES)
        self.dead = reason
        if not worker.given_up:
            seconds = pause(worker.refused)
            if worker.refused > max((w.refused for w in self.workers if w is not worker), default=0):
                note(f"an actor could not be started ({reason}); trying again in {seconds:.0f} s")
            self._drop(worker)
            self.rest(worker, seconds)
        elif not self.alive:
            if final:
                raise UserError(reason)
            raise RunError(f"{reason}; tried {worker.refused} times: run the same command again to go on")
        else:
            note(f"an actor is given up ({reason}); the others go on")

    def _drop(self, worker: Worker) -> None:
        """Another actor takes its place when it is started again."""
        self.actors.drop(worker.actor)
        worker.actor = None

    def lose(self, worker: Worker, held: Sequence[Given], reason: str, gone: bool) -> None:
        """An actor is lost, and with it all that it held; unless it is `gone` it may be reached later."""
        for reference in worker.running:
            del self.running[reference]
        worker.running.clear()
        lost = [given.task for given in held if given.task.name not in self.settled]
        died = gone and not worker.ending  # which was ended from here, as something hangs
        if not worker.ending:
            self.outcome.lost_actors += 1
            watch().lost_actor([task.name for task in lost])
            note(f"an actor was lost at {', '.join(task.name for task in lost)}; another goes on")
        if gone and worker.actor is not None:
            self._drop(worker)
        if worker.up:
            self.rest(worker)
        for task in lost:
            self.fail(task, f"the actor died: {reason}", died)

    def fail(self, task: Task, reason: str, died: bool = False) -> None:
        """Count a failure of a task; it is given out again, unless that was its last attempt or another actor
        has it."""
        if task.name in self.settled:
            return
        self.attempts[task.name] = self.attempts.get(task.name, 0) + 1
        others = [given.task for worker in self.workers for given in worker.running.values()]
        if any(other.name == task.name for other in [*self.queue, *others]):
            return
        if self.attempts[task.name] < task.attempts:
            self.queue.append(task)
        else:
            self.settled.add(task.name)
            self.outcome.failures[task.name] = reason
            if died:
                self.outcome.deaths.add(task.name)
            watch().gave_up(task.name, reason)

    @property
    def alive(self) -> bool:
        """Whether an actor works, or may yet come."""
        return not self.workers or any(w.up or w.running or not w.given_up for w in self.workers)
