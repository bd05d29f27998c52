"""Conditions and the evaluation driver: the right rows are added, and nothing is scored twice."""

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from contrans_dist.benchmarks.emotions import EmotionEvaluation
from contrans_dist.benchmarks.registry import load_benchmark
from contrans_dist.config import ClusterSettings, ModelSettings
from contrans_dist.data.contamination import unit_hashes
from contrans_dist.distributed import local_ray
from contrans_dist.distributed.pool import Outcome, Task
from contrans_dist.engine.scoring import BASE, Intervention
from contrans_dist.errors import RunError, UserError
from contrans_dist.evaluation import driver as room
from contrans_dist.evaluation import parts
from contrans_dist.evaluation import work_units as assignments
from contrans_dist.evaluation.actors import SystemActor
from contrans_dist.evaluation.baselines import System
from contrans_dist.evaluation.driver import evaluate
from contrans_dist.evaluation.steering import Steering, derivable, load_vectors, steering
from contrans_dist.evaluation.work_units import plan_units
from contrans_dist.models import load_model
from contrans_dist.models.placement import Placement
from contrans_dist.store.location import Location
from contrans_dist.store.results import LeakCheck, MetricsFile, plain
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.inprocess import ray_here
from tests.tiny import save_tiny

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no other process has this module

N_BLOCKS, D, BLOCK = 4, 16, 2
CONCEPTS = ["happy", "sad", "afraid"]
STRENGTHS = (0.0, 1.0, 3.0)
PER_CONCEPT = 6
ONE = ClusterSettings(actors=1)


def scenario(concept: str, i: int) -> str:
    return f"The boy number {i} was {concept} when the dog came home."


def concept_vector(concept: str, seed: int, **changes: Any) -> ConceptVector:
    rng = np.random.default_rng(seed)
    values, shuffled = np.zeros((2, N_BLOCKS, D), np.float32)
    values[BLOCK], shuffled[BLOCK] = rng.normal(size=(2, D))
    facts = {
        "values": values,
        "shuffled_map": shuffled,
        "text_hashes": unit_hashes([f"the vector {concept} was made of this"]),
    }
    return ConceptVector(concept=concept, model="tiny", **{**facts, **changes})


def vectors(**changes: Any) -> dict[str, ConceptVector]:
    return {concept: concept_vector(concept, i, **changes) for i, concept in enumerate(CONCEPTS)}


# -- conditions ------------------------------------------------------------------------------------


def test_controls_are_derived_from_the_vectors() -> None:
    made = vectors()
    found = steering({"vector": made}, ["vector", "random", "shuffled-map", "other-concept"])
    assert found.concepts == CONCEPTS
    assert found.blocks == [BLOCK]
    for i, concept in enumerate(CONCEPTS):
        rows = {condition: at[BLOCK] for condition, at in found.rows[concept].items()}
        np.testing.assert_array_equal(rows["vector"], made[concept].values[BLOCK])
        np.testing.assert_array_equal(rows["other-concept"], made[CONCEPTS[(i + 1) % 3]].values[BLOCK])
        shuffled = made[concept].shuffled_map
        assert shuffled is not None
        longer = np.linalg.norm(rows["vector"]) / np.linalg.norm(shuffled[BLOCK])
        np.testing.assert_allclose(rows["shuffled-map"], shuffled[BLOCK] * longer, rtol=1e-5)


def directions(found: Steering, concept: str, items: Sequence[str]) -> np.ndarray:
    """What the control `random` adds at strength 1: float32 `[items, d]`."""
    (random,) = [each for each in found.interventions(concept, [0, 1.0], items) if each.name == "random"]
    return np.asarray(random.vectors[BLOCK])


def test_every_item_meets_a_random_direction_of_its_own_of_the_same_norm() -> None:
    found = steering({"vector": vectors()}, ["vector", "random"])
    items = [f"sad/{i}" for i in range(200)]
    rows = directions(found, "sad", items)
    norm = np.linalg.norm(vectors()["sad"].values[BLOCK])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), norm, rtol=1e-5)
    units = rows / norm
    # Spread evenly: the mean direction of 200 is short, and no two are the same.
    assert np.linalg.norm(units.mean(axis=0)) < 0.2
    assert np.max(units @ units.T - 2 * np.eye(200)) < 0.99
    np.testing.assert_array_equal(directions(found, "sad", items[7:9]), rows[7:9])
    assert not np.allclose(directions(found, "happy", items[:1]), directions(found, "sad", items[:1]))


def test_random_directions_follow_from_the_seed() -> None:
    first, again, other = (steering({"vector": vectors()}, ["random"], seed=seed) for seed in (1, 1, 2))
    assert first.digest() == again.digest() != other.digest()
    np.testing.assert_array_equal(directions(first, "sad", ["a"]), directions(again, "sad", ["a"]))
    assert not np.allclose(directions(first, "sad", ["a"]), directions(other, "sad", ["a"]))


def test_strength_0_is_the_base_once() -> None:
    found = steering({"vector": vectors()}, ["vector", "other-concept"]).interventions(
        "sad", [0, 1, 2], ["a"]
    )
    assert [(each.name, each.strength) for each in found] == [
        ("base", 0), ("vector", 1), ("vector", 2), ("other-concept", 1), ("other-concept", 2),
    ]  # fmt: skip


def test_given_conditions_and_texts() -> None:
    own = vectors()
    main = vectors(map_text_hashes=np.array([5, 7], np.int64))
    found = steering({"vector": main, "self-align": own}, ["self-align"])
    np.testing.assert_array_equal(found.rows["sad"]["self-align"][BLOCK], own["sad"].values[BLOCK])
    assert found.map_texts.tolist() == [5, 7]
    assert set(found.vector_texts) == set(np.concatenate([each.text_hashes for each in main.values()]))


def test_another_block_of_a_vector_can_be_asked_for() -> None:
    values = np.random.default_rng(0).normal(size=(N_BLOCKS, D)).astype(np.float32)
    whole = {c: concept_vector(c, 0, values=values, shuffled_map=None) for c in CONCEPTS}
    found = steering({"vector": whole}, ["vector", "other-concept", "random"], block=1)
    assert found.blocks == [1]
    np.testing.assert_array_equal(found.rows["sad"]["vector"][1], values[1])
    with pytest.raises(UserError, match=r"carries blocks \[0, 1, 2, 3\]; say which with --block"):
        steering({"vector": whole}, ["vector"])
    with pytest.raises(UserError, match="carries nothing at block 0"):
        steering({"vector": vectors()}, ["vector"], block=0)


@pytest.mark.parametrize(
    ("given", "condition", "said"),
    [
        ({"vector": {"sad": concept_vector("sad", 0)}}, "other-concept", "at least two concepts"),
        ({"vector": vectors(shuffled_map=None)}, "shuffled-map", "'happy' did not come through a map"),
        ({"vector": vectors(), "no-map": {}}, "no-map", "condition no-map: no vector for concept 'happy'"),
        ({"vector": vectors()}, "self-align", "condition self-align: no vectors were made for it"),
    ],
)
def test_what_cannot_be_derived_is_named(given: Any, condition: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        steering(given, [condition])


def test_vector_files_one_a_concept(tmp_path: Path) -> None:
    for concept, vector in vectors().items():
        vector.save(Location.parse(tmp_path / f"{concept}.safetensors"))
    files = [str(tmp_path / f"{concept}.safetensors") for concept in CONCEPTS]
    loaded = load_vectors(files)
    conditions = ["vector", "random"]
    assert (
        steering({"vector": loaded}, conditions).digest()
        == steering({"vector": vectors()}, conditions).digest()
    )
    with pytest.raises(UserError, match=r"sad.safetensors: a second vector of concept 'sad'"):
        load_vectors([*files, files[1]])


def test_controls_that_the_vectors_allow() -> None:
    given = vectors()
    first = next(iter(given))
    assert derivable({}) == []
    assert derivable({first: replace(given[first], shuffled_map=None)}) == ["random"]
    with_map = {c: replace(v, shuffled_map=v.values) for c, v in given.items()}
    assert derivable(with_map) == ["random", "shuffled-map", "other-concept"]


# -- the driver ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    return ModelSettings(id=str(save_tiny(tmp_path_factory.mktemp("model"), n_blocks=N_BLOCKS, d=D)))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EmotionEvaluation:
    path = tmp_path_factory.mktemp("texts") / "scenarios.jsonl"
    rows = [{"text": scenario(c, i), "concept": c} for c in CONCEPTS for i in range(PER_CONCEPT)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EmotionEvaluation(texts=str(path), strengths=STRENGTHS)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "ITEMS_PER_UNIT", 8)


def steered(**changes: Any) -> Steering:
    return steering({"vector": vectors(**changes)}, ["vector", "random", "shuffled-map", "other-concept"])


Runner = Callable[..., Outcome]


def in_process(kept: list[str] | None = None, stop_after: int = 1000) -> Runner:
    """A stand-in for the pool: the same actor in this process, and a record of what it was given."""

    def run(system: System, _: Any, tasks: Sequence[Task], on_result: Any, shared: Any, **__: Any) -> Outcome:
        worker = SystemActor(system, Placement("resident", "a test"))
        for count, task in enumerate(tasks):
            if count == stop_after:
                raise KeyboardInterrupt
            if kept is not None:
                kept.append(task.name)
            on_result(task, worker.run(task.payload, shared))
        return Outcome()

    return run


def no_work(*_: Any, **__: Any) -> Outcome:
    raise AssertionError("something was scored")


@pytest.fixture(scope="module")
def made(
    local: None, model: ModelSettings, settings: EmotionEvaluation, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, MetricsFile]:
    """One evaluation by real actors: what the others are held against."""
    out = tmp_path_factory.mktemp("made") / "evaluation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignments, "ITEMS_PER_UNIT", 8)
        return out, evaluate(model, settings, steered(), str(out), ONE)


def rows_of(table: pa.Table) -> dict[tuple[str, str, float], dict[str, Any]]:
    return {(row["item"], row["condition"], row["strength"]): row for row in table.to_pylist()}


def test_the_driver_writes_what_the_benchmark_says_of_each_item_alone(
    made: tuple[Path, MetricsFile], model: ModelSettings, settings: EmotionEvaluation
) -> None:
    found = rows_of(pq.read_table(made[0] / "results.parquet"))
    benchmark, lm, given = load_benchmark(settings), load_model(model.id), steered()
    items = benchmark.items()
    assert len(items) == 2 * 3 * PER_CONCEPT
    expected_keys = 0
    for split in plan_units(items):
        for item in split.items:
            rows = dict(given.rows[item.concept])
            rows["random"] = {BLOCK: directions(given, item.concept, [item.id])[0]}
            wanted = [BASE, *(Intervention(n, at, s) for n, at in rows.items() for s in STRENGTHS if s)]
            for key, row in rows_of(benchmark.score(lm, [item], wanted)).items():
                expected_keys += 1
                for name, value in row.items():
                    got = found[key][name]
                    if name == "logprob" or name.startswith("logits."):
                        assert got == pytest.approx(value, abs=2e-4), (key, name)
                    else:
                        assert got == value, (key, name)
    assert len(found) == expected_keys == len(items) * (1 + 4 * 2)


def test_the_base_is_the_unsteered_model_and_strength_0(
    made: tuple[Path, MetricsFile], model: ModelSettings, settings: EmotionEvaluation
) -> None:
    """The logits of transformers itself, without any of our hooks."""
    import torch

    table = pq.read_table(made[0] / "results.parquet")
    assert {row["condition"] for row in table.to_pylist() if row["strength"] == 0} == {"base"}
    lm = load_model(model.id)
    base = {key[0]: row for key, row in rows_of(table).items() if key[1] == "base"}
    for item in load_benchmark(settings).items()[::5]:
        ids = lm.tokenizer(item.prompt)["input_ids"]
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids])).logits[0, -1]
        assert base[item.id]["argmax"] == int(logits.argmax())
        cue = lm.tokenizer(item.prompt + " " + item.concept)["input_ids"][len(ids)]
        assert base[item.id][f"logits.{item.concept}"] == pytest.approx(float(logits[cue]), abs=2e-4)


def test_the_steered_model_is_steered(made: tuple[Path, MetricsFile]) -> None:
    rows = rows_of(pq.read_table(made[0] / "results.parquet"))
    for condition in ("vector", "random", "shuffled-map", "other-concept"):
        same = [
            abs(row["logprob"] - rows[item, "base", 0.0]["logprob"])
            for (item, name, strength), row in rows.items()
            if name == condition and strength == 3.0
        ]
        assert np.median(same) > 1e-2, condition


def test_one_vector_is_scored_against_the_other_concepts(
    local: None, model: ModelSettings, settings: EmotionEvaluation, tmp_path: Path
) -> None:
    """A single vector steers its own items alone; the others still give scenarios and labels."""
    one = steering({"vector": {"sad": concept_vector("sad", 1)}}, ["vector", "random"])
    with ray_here():
        evaluate(model, settings, one, str(tmp_path / "one"), ONE)
    rows = pq.read_table(tmp_path / "one" / "results.parquet").to_pylist()
    assert {row["concept"] for row in rows} == {"sad"}
    assert {row["kind"] for row in rows} == {"positive", "negative"}
    assert all(f"logits.{concept}" in rows[0] for concept in CONCEPTS)
    other = steering({"vector": {"proud": concept_vector("proud", 1)}}, ["vector"])
    with pytest.raises(UserError, match=r"no scenarios of 'proud'; there are afraid, happy, sad"):
        evaluate(model, settings, other, str(tmp_path / "other"), ONE)


def test_metrics_have_the_shape_of_the_design(made: tuple[Path, MetricsFile], model: ModelSettings) -> None:
    content = json.loads((made[0] / "metrics.json").read_text())
    assert content == json.loads(json.dumps(plain(made[1])))
    assert (content["benchmark"], content["model"], content["block"]) == ("emotions", model.id, BLOCK)
    conditions = {(entry["condition"], entry["strength"]) for entry in content["conditions"]}
    steered_by = ("vector", "random", "shuffled-map", "other-concept")
    assert conditions == {("base", 0.0), *((name, s) for name in steered_by for s in STRENGTHS if s)}
    table = pq.read_table(made[0] / "results.parquet").to_pylist()
    n = 3 * PER_CONCEPT * 2
    assert content["rows"] == {"base": n, **dict.fromkeys(steered_by, 2 * n)}
    for entry in content["conditions"]:
        for name in ("token_acc", "logit_acc"):
            for kind in ("negative", "positive"):
                cell = entry["metrics"][f"{name}_{kind}"]
                hits = [
                    row[name.replace("acc", "hit")]
                    for row in table
                    if (row["condition"], row["strength"], row["kind"])
                    == (entry["condition"], entry["strength"], kind)
                ]
                assert cell["n"] == len(hits) == 3 * PER_CONCEPT
                assert cell["value"] == pytest.approx(np.mean(hits))
                assert 0 <= cell["low"] <= cell["value"] <= cell["high"] <= 1
                assert f"sad/{name}_{kind}" in entry["metrics"]
    assert content["leak"] == {
        "evaluated": 3 * PER_CONCEPT, "overlap_vector": 0, "overlap_map": 0, "in_part": 0, "examples": [],
    }  # fmt: skip
    assert not (made[0] / "parts").exists()


def test_a_small_evaluation_needs_no_ray_and_finds_the_same(
    made: tuple[Path, MetricsFile],
    model: ModelSettings,
    settings: EmotionEvaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(local_ray, "connect", None)  # whoever starts it fails
    for word in ("get", "put", "nodes"):
        monkeypatch.setattr(ray, word, None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = evaluate(model, settings, steered(), str(tmp_path / "here"), title="choose", trials=True)
    assert found.conditions == made[1].conditions
    assert found.fingerprint == made[1].fingerprint
    assert pq.read_table(tmp_path / "here/results.parquet").equals(pq.read_table(made[0] / "results.parquet"))
    trials = 1 + 4 * len([strength for strength in STRENGTHS if strength])
    assert f"choose: {trials} of {trials} trials, " in capsys.readouterr().err


def test_what_is_complete_is_returned_at_once(
    made: tuple[Path, MetricsFile],
    model: ModelSettings,
    settings: EmotionEvaluation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "run_on", no_work)
    before = (made[0] / "results.parquet").stat().st_mtime_ns
    again = evaluate(model, settings, steered(), str(made[0]), ONE)
    assert plain(again) == json.loads((made[0] / "metrics.json").read_text())
    assert (made[0] / "results.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"strengths": (0.0, 2.0)}, "strengths: found [0.0, 1.0, 3.0], asked for [0.0, 2.0]"),
        ({"per_concept": 2}, "items: found"),
        ({"protocol": "paper"}, "protocol: found 'default', asked for 'paper'"),
        ({"labels": {"afraid": "angry"}}, "labels: found {}, asked for {'afraid': 'angry'}"),
    ],
)
def test_other_settings_are_refused_by_name(
    made: tuple[Path, MetricsFile],
    model: ModelSettings,
    settings: EmotionEvaluation,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    field: str,
) -> None:
    monkeypatch.setattr(room, "run_on", no_work)
    with pytest.raises(UserError) as caught:
        evaluate(model, settings.model_copy(update=change), steered(), str(made[0]), ONE)
    assert "holds another evaluation" in str(caught.value)
    assert field in str(caught.value)


def test_another_vector_is_refused(
    made: tuple[Path, MetricsFile], model: ModelSettings, settings: EmotionEvaluation
) -> None:
    other = steering({"vector": vectors()}, ["vector", "random", "shuffled-map", "other-concept"], seed=9)
    with pytest.raises(UserError, match="steering: found"):
        evaluate(model, settings, other, str(made[0]), ONE)


def test_an_interrupted_evaluation_goes_on_where_it_was(
    local: None,
    made: tuple[Path, MetricsFile],
    model: ModelSettings,
    settings: EmotionEvaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "evaluation"
    with monkeypatch.context() as patch:
        patch.setattr(room, "run_on", in_process(stop_after=4))
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, settings, steered(), str(out), ONE)
    assert not (out / "metrics.json").exists()
    parts = sorted((out / "parts").iterdir())
    assert [part.name for part in parts] == [f"part-{i:05d}.parquet" for i in range(4)]
    parts[1].write_bytes(parts[1].read_bytes()[:-20])  # a torn file
    parts[2].unlink()
    computed: list[str] = []
    monkeypatch.setattr(room, "run_on", in_process(computed))
    evaluate(model, settings, steered(), str(out), ONE)
    assert computed == [
        "part-00001.parquet",
        "part-00002.parquet",
        "part-00004.parquet",
        "part-00005.parquet",
    ]
    a, b = (pq.read_table(folder / "results.parquet") for folder in (made[0], out))
    assert a.equals(b)


def test_parts_of_other_settings_are_refused_or_replaced(
    local: None,
    model: ModelSettings,
    settings: EmotionEvaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "evaluation"
    with monkeypatch.context() as patch:
        patch.setattr(room, "run_on", in_process(stop_after=2))
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, settings, steered(), str(out), ONE)
    other = settings.model_copy(update={"strengths": (0.0, 2.0)})
    with pytest.raises(UserError, match="strengths: found"):
        evaluate(model, other, steered(), str(out), ONE)
    computed: list[str] = []
    monkeypatch.setattr(room, "run_on", in_process(computed))
    metrics = evaluate(model, other, steered(), str(out), ONE, replace=True)
    assert len(computed) == 6
    assert {entry.strength for entry in metrics.conditions} == {0.0, 2.0}
    computed.clear()
    third = evaluate(model, settings, steered(), str(out), ONE, replace=True)
    assert len(computed) == 6
    assert third.strengths == list(STRENGTHS)


@contextmanager
def at_work(
    model: ModelSettings, settings: EmotionEvaluation, out: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """An evaluation in a thread of its own, which waits with two of its six parts done until the block ends.
    In the block, what others compute is recorded."""
    begun, go, kept = threading.Event(), threading.Event(), list[str]()

    def waits(
        system: System, _: Any, tasks: Sequence[Task], on_result: Any, shared: Any, **__: Any
    ) -> Outcome:
        in_process()(system, None, tasks[:2], on_result, shared)
        begun.set()
        assert go.wait(300)
        return in_process()(system, None, tasks[2:], on_result, shared)

    monkeypatch.setattr(room, "run_on", waits)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(evaluate, model, settings, steered(), str(out), ONE)
        try:
            assert begun.wait(300)
            monkeypatch.setattr(room, "run_on", in_process(kept))
            yield kept
        finally:
            go.set()
        first.result()


def test_other_settings_beside_a_run_at_work_are_refused_before_anything_is_cleared(
    local: None,
    made: tuple[Path, MetricsFile],
    model: ModelSettings,
    settings: EmotionEvaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As two jobs of one recipe, of which one was changed. Before, each removed the other's parts."""
    out, other = tmp_path / "evaluation", settings.model_copy(update={"strengths": (0.0, 2.0)})
    told = (
        r"another run is at work there under other settings .*strengths: found \[0.0, 1.0, 3.0\], asked for"
    )
    with at_work(model, settings, out, monkeypatch) as computed:
        with pytest.raises(UserError, match=told):
            evaluate(model, other, steered(), str(out), ONE, replace=True)
        assert computed == []
        assert len(list((out / "parts").iterdir())) == 2
    assert pq.read_table(out / "results.parquet").equals(pq.read_table(made[0] / "results.parquet"))
    evaluate(model, other, steered(), str(out), ONE, replace=True)
    assert len(computed) == 6
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "results.parquet"]


def test_two_runs_with_the_same_settings_at_once_finish_both(
    local: None,
    made: tuple[Path, MetricsFile],
    model: ModelSettings,
    settings: EmotionEvaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before, the first to finish removed the parts that the other still needed."""
    out = tmp_path / "evaluation"
    ready = room.prepared(model, settings, steered(), str(out), ONE)
    with at_work(model, settings, out, monkeypatch) as computed:
        evaluate(model, settings, steered(), str(out), ONE)
        assert computed == [f"part-{i:05d}.parquet" for i in range(2, 6)]
        assert pq.read_table(out / "results.parquet").equals(pq.read_table(made[0] / "results.parquet"))
    assert pq.read_table(out / "results.parquet").equals(pq.read_table(made[0] / "results.parquet"))
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "results.parquet"]
    monkeypatch.setattr(room, "run_on", no_work)
    assert room.scored(ready, ONE).fingerprint == made[1].fingerprint  # finished by others meanwhile


def test_what_a_run_of_the_same_settings_finishes_meanwhile_stays(
    local: None,
    made: tuple[Path, MetricsFile],
    model: ModelSettings,
    settings: EmotionEvaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whenever it publishes: here while the folder is being cleared."""
    out = tmp_path / "evaluation"
    ready, looks = room.prepared(model, settings, steered(), str(out), ONE), []

    def looked(at: Location) -> dict[str, Any] | None:
        looks.append(identity_in(at))
        if len(looks) == 2:
            shutil.copytree(made[0], out, dirs_exist_ok=True)
        return looks[-1]

    identity_in = parts.identity_in
    monkeypatch.setattr(parts, "identity_in", looked)
    parts.cleared(Location.parse(out), ready.spec.identity, False)
    assert len(looks) == 2
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "results.parquet"]
    (out / "results.parquet").unlink()  # nobody is at work on what has no results
    parts.cleared(Location.parse(out), ready.spec.identity, False)
    assert list(out.iterdir()) == []


def test_failed_parts_are_named_and_the_finished_ones_kept(
    local: None,
    model: ModelSettings,
    settings: EmotionEvaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(system: Any, cluster: Any, tasks: Any, **named: Any) -> Outcome:
        in_process()(system, cluster, tasks[1:], **named)
        return Outcome(failures={tasks[0].name: "out of memory"})

    out = tmp_path / "evaluation"
    monkeypatch.setattr(room, "run_on", fails)
    with pytest.raises(RunError, match=r"1 of 6 parts failed \(part-00000.parquet: out of memory\)"):
        evaluate(model, settings, steered(), str(out), ONE)
    assert len(list((out / "parts").iterdir())) == 5
    assert not (out / "metrics.json").exists()


def test_leaks_are_counted_and_can_be_left_out(
    local: None,
    model: ModelSettings,
    settings: EmotionEvaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "run_on", in_process())
    seen = [scenario("sad", 0), scenario("happy", 1), scenario("happy", 2)]
    leaky = steered(
        text_hashes=unit_hashes([f"Scenario: {seen[0]}\nThe emotion of it is", "nothing else was seen here"]),
        map_text_hashes=unit_hashes(seen[1:]),
    )
    leak = evaluate(model, settings, leaky, str(tmp_path / "all"), ONE).leak
    assert leak is not None
    assert (leak.evaluated, leak.overlap_vector, leak.overlap_map) == (18, 1, 2)
    assert sorted(leak.examples or []) == sorted(seen)
    unseen = settings.model_copy(update={"only_unseen": True})
    held_out = evaluate(model, unseen, leaky, str(tmp_path / "unseen"), ONE)
    assert held_out.leak == LeakCheck(evaluated=15, overlap_vector=0, overlap_map=0, in_part=0, examples=[])
    found = pq.read_table(tmp_path / "unseen" / "results.parquet").column("scenario").to_pylist()
    assert not set(found) & set(seen)
    assert len(set(found)) == 15
    everything = steered(
        map_text_hashes=unit_hashes([scenario(c, i) for c in CONCEPTS for i in range(PER_CONCEPT)])
    )
    with pytest.raises(UserError, match=r"scenarios.jsonl: only_unseen leaves nothing"):
        evaluate(model, unseen, everything, str(tmp_path / "none"), ONE)
    imported = steered(text_hashes=unit_hashes([]))
    unknown = evaluate(model, settings, imported, str(tmp_path / "imported"), ONE).leak
    assert unknown == LeakCheck(evaluated=18, in_part=0, examples=[])
    through = steered(map_texts_known=False)
    unknown = evaluate(model, settings, through, str(tmp_path / "through"), ONE).leak
    assert unknown == LeakCheck(evaluated=18, overlap_vector=0, in_part=0, examples=[])


def test_without_vectors_the_base_alone_is_scored(
    local: None,
    model: ModelSettings,
    settings: EmotionEvaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "run_on", in_process())
    metrics = evaluate(model, settings, Steering(), str(tmp_path / "base"), ONE)
    assert [(e.condition, e.strength) for e in metrics.conditions] == [("base", 0.0)]
    assert metrics.conditions[0].metrics["token_acc_negative"].n == 3 * PER_CONCEPT


def test_a_vector_of_another_width_is_bad_input(
    local: None, model: ModelSettings, settings: EmotionEvaluation, tmp_path: Path
) -> None:
    """Raised in an actor, and still one line for the user."""
    wide = concept_vector("sad", 0, values=np.ones((N_BLOCKS, D + 1), np.float32), shuffled_map=None).only(1)
    with pytest.raises(UserError, match="hidden size is 16"):
        evaluate(model, settings, steering({"vector": {"sad": wide}}, ["vector"]), str(tmp_path / "e"), ONE)
