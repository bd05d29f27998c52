"""The registry of benchmarks: ours, and those that installed packages bring. Each is loaded when it is named.

A package brings its own by an entry point of the group `contrans_dist.benchmarks`: the benchmark's name, and
`module:class` of a `contrans_dist.benchmarks.Benchmark`. Ours stand here in the same form: rooms below are
known by name alone, so that nothing is imported that is not asked for.
"""

import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from contrans_dist.errors import UserError, meant, one_line

GROUP = "contrans_dist.benchmarks"
OURS = tuple(
    EntryPoint(name, f"{GROUP}.{place}", GROUP)
    for name, place in (
        ("emotions", "emotions:EmotionBenchmark"),
        ("truthfulqa", "truthfulqa:TruthfulQABenchmark"),
        ("behaviours", "behaviours:BehaviourBenchmark"),
        ("toxigen", "toxigen:ToxigenBenchmark"),
        ("perplexity", "perplexity:PerplexityBenchmark"),
        ("lm-eval", "lm_eval:HarnessBenchmark"),
        ("contrast", "contrast:ContrastBenchmark"),
    )
)
DEFAULT = OURS[0].name
"""Where an evaluation names none."""


def benchmark_names() -> list[str]:
    """Every benchmark that can be named, ours first."""
    return list(dict.fromkeys(entry.name for entry in (*OURS, *_brought(tuple(sys.path)))))


def find_benchmark(name: str) -> Any:
    """The class of a benchmark (a `contrans_dist.benchmarks.Benchmark`).

    Raises UserError for a name that there is not, for one that two packages bring, and for a package whose
    benchmark cannot be imported, naming the package.
    """
    entries = [entry for entry in (*OURS, *_brought(tuple(sys.path))) if entry.name == name]
    if not entries:
        raise UserError(f"no benchmark {name!r}; {meant(name, benchmark_names())}")
    if len(entries) > 1:
        packages = " and ".join(map(_package, entries))
        raise UserError(f"benchmark {name}: {packages} both bring one of that name; uninstall one of them")
    (entry,) = entries
    return _loaded(entry)


@lru_cache(maxsize=1)
def _brought(_path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Those of installed packages, looked up anew where the path that they are found on has changed."""
    return tuple(entry_points(group=GROUP))


@lru_cache
def _loaded(entry: EntryPoint) -> Any:
    where = f"benchmark {entry.name} of {_package(entry)}"
    try:
        benchmark = entry.load()
    except Exception as error:  # what a stranger's module does when it is imported is up to it
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{where}: {entry.value} cannot be imported: {reason}") from error
    fields = getattr(getattr(benchmark, "settings_class", None), "model_fields", {})
    if "benchmark" not in fields:
        raise UserError(f"{where}: expected a Benchmark with a `settings_class`, found {entry.value}")
    if fields["benchmark"].default != entry.name:
        told = fields["benchmark"].default
        raise UserError(f"{where}: its settings call it {told!r}; expected the name of its entry point")
    return benchmark


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "contrans-dist"
