"""Maps: one vector, every pair of blocks, many rows, two workers; against the authors' code and matmul."""

import gc
import hashlib
import importlib.util
import json
import os
import statistics
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from contrans_dist.mapping.block_r2 import r2_table
from contrans_dist.mapping.heldout import FIT, VALIDATION, default_split
from contrans_dist.mapping.library import map_vectors
from contrans_dist.mapping.solver import RIDGES
from contrans_dist.mapping.sums import Sums
from contrans_dist.store import schema
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.footers import hash_footer, page_facts
from contrans_dist.store.shard_file import row_norms
from speed.common import Bench, Row

CONDITION, HOPELESS = 1e6, 1e10
_OUTLIERS, _TIMES_THE_REST = 4, 100.0
_COMPARED = 3
"""Pairs of blocks that the authors' code fits."""
_FEW_ROWS = 100_000


def rows(bench: Bench) -> Iterator[Row]:
    yield _vector(bench)
    yield _pairs(bench)
    yield _peak(bench)
    if importlib.util.find_spec("ray") is None:
        print("reduce/two-workers: left out, ray is not installed")
    elif (os.cpu_count() or 1) < 2:
        print("reduce/two-workers: left out, there is one core")
    else:
        yield _two_workers(bench)


# -- one vector ------------------------------------------------------------------------------------


def authors_map(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The map as the code of ConTrans computes it: float32, thin SVD, no cut-off."""
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    return vh.T @ torch.diag(1 / sigma) @ u.T @ y


def rows_of_condition(n: int, d: int, condition: float, rng: np.random.Generator) -> np.ndarray:
    """Rows float64 [n, d], n <= d, of this condition number (within a few per cent). A few columns are a
    hundred times the rest, as in a model's residual stream; the other singular values are spread evenly, in
    logarithm, from 1 down."""
    plain = d - _OUTLIERS
    k = min(n, plain)
    left = np.linalg.qr(rng.standard_normal((n, k)))[0]
    right = np.linalg.qr(rng.standard_normal((plain, k)))[0]
    drawn = rng.standard_normal((n, _OUTLIERS))
    largest = 1.0
    for _ in range(20):  # the smallest value asked for depends on the outliers' size, and that on it a little
        sigma = np.geomspace(1.0, largest / condition, k)
        outliers = drawn * (_TIMES_THE_REST * np.sqrt(np.sum(sigma**2) / (n * plain)))
        largest = max(1.0, float(np.linalg.norm(outliers, 2)))
    places = rng.permutation(d)
    x = np.empty((n, d))
    x[:, places[:_OUTLIERS]] = outliers
    x[:, places[_OUTLIERS:]] = (left * sigma) @ right.T
    return x


def _vector(bench: Bench) -> Row:
    n, d_source, d_target = (40, 96, 112) if bench.quick else (1600, 4096, 5120)
    rng = np.random.default_rng(0)
    x = rows_of_condition(n, d_source, CONDITION, rng).astype(np.float32)
    y = rng.standard_normal((n, d_target)).astype(np.float32)
    vector = rng.standard_normal(d_source).astype(np.float32)
    x_torch, y_torch, vector_torch = map(torch.from_numpy, (x, y, vector))

    u, sigma, vh = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    truth = (vector.astype(np.float64) @ vh.T / sigma @ u.T) @ y
    mapped, warnings = map_vectors(vector[None], x, y)
    theirs = (vector_torch @ authors_map(x_torch, y_torch)).double().numpy()
    hopeless = rows_of_condition(n, d_source, HOPELESS, rng)
    said = map_vectors(vector[None], hopeless, y)[1]
    if warnings or not said:
        raise RuntimeError(f"at condition {CONDITION:.0e} warned {warnings}, at {HOPELESS:.0e} {said}")
    taken = bench.compare(
        {
            "ours": lambda: map_vectors(vector[None], x, y),
            "theirs": lambda: vector_torch @ authors_map(x_torch, y_torch),
        }
    )
    size = np.linalg.norm(truth)
    return Row(
        "reduce",
        "reduce/vector",
        taken["theirs"] / taken["ours"],
        taken["ours"],
        taken["theirs"],
        "seconds",
        float(np.linalg.norm(mapped[0] - truth) / size),
        f"{n} x {d_source} -> {d_target}, condition {sigma[0] / sigma[-1]:.1e} (the authors' error "
        f"{np.linalg.norm(theirs - truth) / size:.0e}); at {HOPELESS:.0e} we warn",
    )


# -- every pair of blocks --------------------------------------------------------------------------


def _pairs(bench: Bench) -> Row:
    n_source, n_target, n, d_source, d_target = (
        (4, 5, 400, 288, 320) if bench.quick else (32, 40, 2000, 4096, 5120)
    )
    rng = np.random.default_rng(1)
    shared = rng.standard_normal((n, 64), dtype=np.float32)
    source, target = (
        {k: _follow(shared, d, 0.5 + k / 8, rng) for k in range(blocks)}
        for blocks, d in ((n_source, d_source), (n_target, d_target))
    )
    split = default_split(n)
    chosen = [(i * (n_source - 1) // 2, i * (n_target - 1) // 2) for i in range(_COMPARED)]
    found: dict[str, np.ndarray] = {}

    def ours() -> None:
        found["table"] = r2_table(source, target, split, width=max(d_source, d_target))

    def theirs() -> None:
        for i, j in chosen:
            x, y = torch.from_numpy(source[i]), torch.from_numpy(target[j])
            fit, held = torch.from_numpy(split == FIT), torch.from_numpy(split == VALIDATION)
            ((x[held] @ authors_map(x[fit], y[fit]) - y[held]) ** 2).mean()

    # Minutes of many equal steps on our side: repeats would show nothing new.
    taken = bench.compare({"theirs": theirs, "ours": ours}, repeats=1)
    their_seconds = taken["theirs"] * n_source * n_target / _COMPARED
    alone = [best_r2(source[i], target[j], split) for i, j in chosen]
    return Row(
        "reduce",
        "reduce/pairs",
        their_seconds / taken["ours"],
        taken["ours"],
        their_seconds,
        "seconds",
        max(abs(found["table"][pair] - r2) for pair, r2 in zip(chosen, alone, strict=True)),
        f"{n_source} x {n_target} blocks of widths {d_source} and {d_target}, {n} texts; theirs from "
        f"{_COMPARED} pairs; error: R2 against pairs fitted alone",
    )


def _follow(shared: np.ndarray, d: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Rows float32 [n, d] that follow `shared` [n, k], so that one block can be told from another."""
    rows = shared @ rng.standard_normal((shared.shape[1], d), dtype=np.float32)
    return rows + noise * rng.standard_normal(rows.shape, dtype=np.float32) * 8 + 1


def best_r2(x: np.ndarray, y: np.ndarray, split: np.ndarray) -> float:
    """The validation R2 of one pair at its best ridge, with every ridge's predictions written out."""
    fit, held = split == FIT, split == VALIDATION
    x_mean, y_mean = x[fit].mean(axis=0, dtype=np.float64), y[fit].mean(axis=0, dtype=np.float64)
    x_fit, x_held, y_fit, y_held = x[fit] - x_mean, x[held] - x_mean, y[fit] - y_mean, y[held] - y_mean
    values, vectors = np.linalg.eigh(x_fit @ x_fit.T)
    along, projected = x_held @ x_fit.T @ vectors, vectors.T @ y_fit
    errors = [np.sum((along / (values + ridge * values[-1]) @ projected - y_held) ** 2) for ridge in RIDGES]
    return 1.0 - float(min(errors) / np.sum(y_held**2))


# -- many rows -------------------------------------------------------------------------------------


def _peak(bench: Bench) -> Row:
    """Operations that the sums need (half of a product that is symmetric) over the machine's rate."""
    n, d_source, d_target = (512, 96, 112) if bench.quick else (16_384, 4096, 5120)
    rng = np.random.default_rng(2)
    x, y = (rng.standard_normal((n, d), dtype=np.float32) + 1 for d in (d_source, d_target))
    operations = n * d_source * (d_source + 2 * d_target)
    square = rng.standard_normal((2048, 2048))
    product = np.empty_like(square)
    sums = Sums(d_source, d_target)
    sums.add(x[:64], y[:64])
    shares, rates, ceilings = [], [], []
    for _ in range(bench.repeats):
        before = _matmul_seconds(bench, square, product)
        rates.append(operations / bench.seconds(lambda: sums.add(x, y)))
        seconds = (before + _matmul_seconds(bench, square, product)) / 2
        ceilings.append(2 * len(square) ** 3 / seconds)
        shares.append(rates[-1] / ceilings[-1])
    few = _FEW_ROWS // (5 if bench.quick else 1)
    memory, of_more = _peak_bytes(few), _peak_bytes(10 * few)
    return Row(
        "reduce",
        "reduce/peak-float64",
        statistics.median(shares),
        statistics.median(rates) / 1e9,
        statistics.median(ceilings) / 1e9,
        "GFLOP/s",
        _sums_error(rng),
        f"sums over {n} rows of widths {d_source} and {d_target}; peak memory at widths 64 and 48: "
        f"{memory / 1e6:.1f} MB for {few:,} rows, {of_more / 1e6:.1f} MB for {10 * few:,}",
    )


def _matmul_seconds(bench: Bench, square: np.ndarray, product: np.ndarray) -> float:
    """Median of five products of two float64 matrices of 2048 x 2048."""
    return statistics.median(bench.seconds(lambda: np.matmul(square, square, out=product)) for _ in range(5))


def _peak_bytes(n: int) -> int:
    """The most memory that the sums over n rows took, rows that are made chunk by chunk included."""
    gc.collect()
    tracemalloc.start()
    try:
        rng = np.random.default_rng(3)
        sums = Sums(64, 48)
        for start in range(0, n, 8192):
            rows = rng.standard_normal((min(8192, n - start), 112), dtype=np.float32)
            sums.add(rows[:, :64], rows[:, 64:])
        sums.done()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _sums_error(rng: np.random.Generator) -> float:
    """Worst relative deviation of the sums over 10,000 rows from numpy's own, in one product."""
    x, y = rng.standard_normal((10_000, 48)) + 5, rng.standard_normal((10_000, 40)) - 3
    sums = Sums(48, 40)
    for start in range(0, len(x), 777):
        sums.add(x[start : start + 777], y[start : start + 777])
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    pairs = ((sums.sxx, a.T @ a), (sums.sxy, a.T @ b), (sums.syy, np.sum(b**2, axis=0)))
    return max(float(np.abs(ours - numpys).max() / np.abs(numpys).max()) for ours, numpys in pairs)


# -- two workers -----------------------------------------------------------------------------------


def _two_workers(bench: Bench) -> Row:
    """`fit` over more rows than are held in memory, with one worker of one thread and with two."""
    n, d = (51_000, 16) if bench.quick else (196_608, 2048)
    sets = [_write_set(bench.scratch / f"rows-{seed}", n, d, seed) for seed in (0, 1)]
    turns: dict[int, list[float]] = {1: [], 2: []}
    weights = {}
    for _ in range(min(bench.repeats, 3)):
        for workers, taken_before in turns.items():
            seconds, weights[workers] = _fit_seconds(bench, workers, sets)
            taken_before.append(seconds)
    taken = {workers: statistics.median(each) for workers, each in turns.items()}
    scale = np.abs(weights[1]).max()
    return Row(
        "reduce",
        "reduce/two-workers",
        taken[1] / taken[2],
        n / taken[2],
        n / taken[1],
        "rows/s",
        float(np.abs(weights[1] - weights[2]).max() / scale),
        f"{n:,} rows of width {d} on both sides from Parquet, one thread a worker, solving included",
    )


def _fit_seconds(bench: Bench, workers: int, sets: list[ActivationSet]) -> tuple[float, np.ndarray]:
    """Seconds of a fit with so many workers, and the map's weight.

    A third of the rows is fitted before: not only are the workers up then, they have touched their memory.
    """
    import ray

    from contrans_dist.config.map_options import MapOptions
    from contrans_dist.mapping.driver import fit

    def weight(pair: list[ActivationSet]) -> np.ndarray:
        return (
            fit(pair[0], pair[1], "0:0", MapOptions("lcross"), shuffled=False, quiet=True).maps[0, 0].weight
        )

    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}},
    )
    try:
        weight([_third(each) for each in sets])
        found: list[np.ndarray] = []
        return bench.seconds(lambda: found.append(weight(sets))), found[0]
    finally:
        ray.shutdown()


def _third(rows: ActivationSet) -> ActivationSet:
    """The first shard of a set that has three."""
    shard = rows.manifest.shards[0]
    return replace(rows, manifest=rows.manifest.model_copy(update={"rows": shard.rows, "shards": [shard]}))


def _write_set(folder: Path, n: int, d: int, seed: int) -> ActivationSet:
    """An activation set of n random rows at one block, in three shards."""
    folder.mkdir()
    rng = np.random.default_rng([4, seed])
    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), d)
    starts = np.linspace(0, n, 4).astype(int)
    for index, (start, stop) in enumerate(pairwise(starts)):
        values = rng.standard_normal((stop - start, d), dtype=np.float32)
        names = [f"text {row}" for row in range(start, stop)]
        block = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
        table = pa.table({"row": range(start, stop), "text_id": names, "text": names, "block_000": block})
        own = {"format": 1, "fingerprint": f"random {seed}", "start": int(start)}
        table = table.replace_schema_metadata({schema.METADATA_KEY: json.dumps(own)})
        path = folder / f"shard-{index:05d}.parquet"
        with pq.ParquetWriter(path, table.schema, compression="none") as writer:
            writer.write_table(table, row_group_size=1024)
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            writer.add_key_value_metadata(page_facts(content, row_norms([values])))
        hash_footer(path)
    pieces = [
        {"name": f"shard-{index:05d}.parquet", "start": int(start), "rows": int(stop - start)}
        for index, (start, stop) in enumerate(pairwise(starts))
    ]
    manifest = {
        "format": 1,
        "kind": "activations",
        "fingerprint": f"random {seed}",
        "identity": {"model": f"random {seed}"},
        "rows": n,
        "d": d,
        "n_blocks": 1,
        "blocks": [0],
        "columns": ["row", "text_id", "text"],
        "norms": {"0": float(np.sqrt(d))},
        "shards": pieces,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return ActivationSet.open(str(folder))
