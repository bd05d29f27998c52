"""Benchmarks by name: the one that settings name, loaded; and what a report calls its numbers."""

from collections.abc import Iterator

from contrans_dist.benchmarks.base import Benchmark
from contrans_dist.benchmarks.summary import Metric
from contrans_dist.config import EvaluationSettings, benchmark_names, find_benchmark
from contrans_dist.config.benchmarks import OURS
from contrans_dist.errors import UserError


def load_benchmark(settings: EvaluationSettings) -> Benchmark:
    """The benchmark that settings name, over every concept of its data.

    Raises:
        UserError: For data that are missing or wrong, or a benchmark that there is not.
    """
    benchmark: type[Benchmark] = find_benchmark(settings.benchmark)
    return benchmark.load(settings)


def about(name: str) -> type[Benchmark]:
    """A benchmark's class, for its names; of one that is not there (any more), the bare base of all."""
    try:
        benchmark: type[Benchmark] = find_benchmark(name)
    except UserError:
        return Benchmark
    return benchmark


def ours() -> Iterator[type[Benchmark]]:
    """The benchmarks that come with the program."""
    return (find_benchmark(entry.name) for entry in OURS)


def metric_of(key: str, benchmark: str = "") -> Metric:
    """How a metric is read.

    Args:
        key: As in `metrics.json`, such as `token_acc_negative` or, for one concept,
            `fear/token_acc_negative`.
        benchmark: Whose it is; empty is the first of all that has one of that name, ours before others'.
    """
    metric = key.rpartition("/")[2]
    meanings = (about(name).metric(metric) for name in ([benchmark] if benchmark else benchmark_names()))
    return next(filter(None, meanings), Metric(metric, percent=False))
