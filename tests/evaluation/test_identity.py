"""The identity of an evaluation: every byte that is scored belongs to it, and nothing else does."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contrans_dist import demo
from contrans_dist.benchmarks.behaviours import BehaviourEvaluation
from contrans_dist.benchmarks.emotions import EmotionEvaluation
from contrans_dist.benchmarks.identity import content_hash
from contrans_dist.benchmarks.perplexity import PerplexityEvaluation
from contrans_dist.benchmarks.toxigen import ToxigenEvaluation
from contrans_dist.benchmarks.truthfulqa import TruthfulQAEvaluation
from contrans_dist.config import EvaluationSettings, ModelSettings, fingerprint
from contrans_dist.evaluation import ready as room
from contrans_dist.evaluation.baselines import System
from contrans_dist.evaluation.driver import evaluate
from contrans_dist.evaluation.steering import Steering
from tests.tiny import save_tiny

CLASSIFIER = Path(demo.__file__).parent / "models/classifier"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), n_blocks=1, d=16)


@pytest.fixture
def identity(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What `evaluate` compares with what is there: this one takes anything for finished."""
    monkeypatch.setattr(room, "finished", lambda out, identity, replace: identity)

    def found(
        settings: EvaluationSettings, steered: Steering | None = None, others: tuple[System, ...] = ()
    ) -> dict[str, Any]:
        own = ModelSettings(id=str(model))
        identity: Any = evaluate(own, settings, steered or Steering(), str(tmp_path / "out"), others=others)
        return dict(identity)

    return found


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def emotions(folder: Path) -> tuple[EvaluationSettings, list[Path], list[str]]:
    texts = jsonl(
        folder / "texts.jsonl",
        [{"text": f"{word} {c}", "concept": c} for c in ("joy", "fear") for word in ("alpha", "bravo")],
    )
    shots = jsonl(folder / "shots.jsonl", [{"text": f"charlie {c}", "concept": c} for c in ("joy", "fear")])
    settings = EmotionEvaluation(texts=str(texts), shots=str(shots), template="{text} delta")
    return settings, [texts, shots], ["alpha", "bravo", "charlie", "joy", "fear"]


def official(folder: Path) -> tuple[EvaluationSettings, list[Path], list[str]]:
    files = []
    for concept in ("joy", "fear"):
        files.append(folder / f"eval_{concept}.json")
        prompts = {kind: [f"Scenario: {kind} alpha {concept}\nbravo is"] for kind in ("pos", "neg")}
        files[-1].write_text(json.dumps(prompts))
    return EmotionEvaluation(texts=str(folder), protocol="paper"), files, ["alpha", "bravo"]


def truthfulqa(folder: Path) -> tuple[EvaluationSettings, list[Path], list[str]]:
    choices = {"charlie": 1, "delta": 0, "echo": 0}
    file = folder / "mc_task.json"
    file.write_text(
        json.dumps(
            [{"question": "alpha bravo?", "mc1_targets": choices, "mc2_targets": {**choices, "golf": 1}}]
        )
    )
    return (
        TruthfulQAEvaluation(texts=str(file)),
        [file],
        ["alpha", "bravo", "charlie", "delta", "echo", "golf"],
    )


def behaviours(folder: Path) -> tuple[EvaluationSettings, list[Path], list[str]]:
    file = folder / "test_dataset_ab.json"
    question = {
        "question": "alpha?\n\nChoices:\n (A) bravo\n (B) charlie",
        "answer_matching_behavior": "(A)",
        "answer_not_matching_behavior": "(B)",
    }
    file.write_text(json.dumps([question]))
    return BehaviourEvaluation(texts=str(file)), [file], ["alpha", "bravo", "charlie"]


def toxigen(folder: Path) -> tuple[EvaluationSettings, list[Path], list[str]]:
    (folder / "texts").mkdir()
    file = folder / "texts/annotated.csv"
    file.write_text(
        "text,target_group,toxicity_human\n"
        + "".join(f"{word} is bad,golf,{4 + i % 2}\n" for i, word in enumerate(("alpha", "bravo")))
    )
    judge = shutil.copytree(CLASSIFIER, folder / "judge")
    settings = ToxigenEvaluation(
        texts=str(folder / "texts"), classifier=str(judge), validation_per_group=0, toxic_label=1
    )
    return settings, [file], ["alpha", "bravo", "golf"]


def perplexity(folder: Path) -> tuple[EvaluationSettings, list[Path], list[str]]:
    file = folder / "text.txt"
    file.write_text("alpha\nThe longest line of all of them is this one, bravo.\ncharlie\n\ndelta\n")
    return (
        PerplexityEvaluation(texts=str(file)),
        [file],
        ["alpha", "longest", "bravo", "charlie", "delta", "\n\n"],
    )


EVERY = [emotions, official, truthfulqa, behaviours, toxigen, perplexity]


@pytest.mark.parametrize("benchmark", EVERY, ids=lambda each: each.__name__)
def test_every_byte_that_is_scored_belongs_to_the_identity(
    benchmark: Callable[..., Any], identity: Callable[..., Any], tmp_path: Path
) -> None:
    settings, files, words = benchmark(tmp_path)
    seen = {fingerprint(identity(settings)): "as it was"}
    assert fingerprint(identity(settings)) in seen
    for word in words:
        before = {file: file.read_bytes() for file in files}
        assert any(word.encode() in data for data in before.values()), word
        for at in range(len(word)):  # in all files alike
            other = "\t" if word[at] == "\n" else "z"
            edited = (word[:at] + other + word[at + 1 :]).encode()
            for file, data in before.items():
                file.write_bytes(data.replace(word.encode(), edited))
            found = fingerprint(identity(settings))
            assert found not in seen, f"{word!r} as {edited!r} is taken for {seen.get(found)}"
            seen[found] = f"{word!r} as {edited!r}"
        for file, data in before.items():
            file.write_bytes(data)
    assert seen[fingerprint(identity(settings))] == "as it was"


def test_a_label_and_an_answers_letter_belong_to_it(identity: Callable[..., Any], tmp_path: Path) -> None:
    for benchmark, old, new in (
        (truthfulqa, '"charlie": 1, "delta": 0', '"charlie": 0, "delta": 1'),
        (behaviours, '"answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"',
         '"answer_matching_behavior": "(B)", "answer_not_matching_behavior": "(A)"'),
    ):  # fmt: skip
        folder = tmp_path / benchmark.__name__
        folder.mkdir()
        settings, (file,), _ = benchmark(folder)
        before = identity(settings)
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
        assert identity(settings) != before


def test_a_concept_that_is_not_scored_but_told_apart_belongs_to_it(
    identity: Callable[..., Any], tmp_path: Path
) -> None:
    """Logit Acc compares with the words of all concepts, whichever are steered."""
    texts = tmp_path / "texts.jsonl"
    rows = [{"text": f"{c} as can be", "concept": c} for c in ("joy", "fear")]
    settings = EmotionEvaluation(texts=str(texts), kinds=("positive",))
    steered = Steering({"joy": {"vector": {0: np.ones(16, np.float32)}}})
    jsonl(texts, rows)
    before = identity(settings, steered)
    jsonl(texts, [*rows, {"text": "rage", "concept": "rage"}])
    assert identity(settings, steered) != before


def test_the_judge_counts_by_what_it_is(identity: Callable[..., Any], tmp_path: Path) -> None:
    settings, _, _ = toxigen(tmp_path)
    judge, before = tmp_path / "judge", identity(settings)
    moved = settings.model_copy(update={"classifier": str(shutil.copytree(judge, tmp_path / "moved"))})
    assert identity(moved) == before
    for name, old, new in (
        ("config.json", b'"1": "unkind"', b'"1": "unkinds"'),
        ("tokenizer.json", b'"direction": "Right"', b'"direction": "Left"'),
        ("tokenizer.json", b'"<unk>"', b'"<unknown>"'),
        ("tokenizer_config.json", None, b'{"model_max_length": 16}'),
        ("model.safetensors", None, None),
    ):
        file = judge / name
        data = file.read_bytes()
        if new is None:  # one bit of the last weight
            file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        elif old is None:
            file.write_text(json.dumps({**json.loads(data), **json.loads(new)}))
        else:
            assert old in data, name
            file.write_bytes(data.replace(old, new))
        assert identity(settings) != before, name
        file.write_bytes(data)
    assert identity(settings) == before
    label = settings.model_copy(update={"toxic_label": 0})
    assert identity(label) != before


def test_texts_that_vectors_and_map_have_seen_belong_to_it(
    identity: Callable[..., Any], tmp_path: Path
) -> None:
    settings, *_ = perplexity(tmp_path)
    plain = Steering({"joy": {"vector": {0: np.ones(16, np.float32)}}})
    found = [
        identity(settings, plain),
        identity(settings, replace(plain, vector_texts=np.array([7], np.int64))),
        identity(settings, replace(plain, map_texts=np.array([7], np.int64))),
    ]
    assert len({fingerprint(each) for each in found}) == 3


def test_other_systems_belong_to_it_by_their_weights(
    identity: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    settings, *_ = perplexity(tmp_path)
    guide = ModelSettings(id=str(save_tiny(tmp_path / "guide", n_blocks=1, d=16, seed=1)))
    system = System("proxy-tuning", ModelSettings(id=str(model)), guides=(guide, guide))
    before = identity(settings, others=(system,))
    save_tiny(tmp_path / "guide", n_blocks=1, d=16, seed=2)
    assert identity(settings, others=(system,)) != before
    assert identity(settings, others=(replace(system, guides=(), instruction="Be kind."),)) != before


def test_values_that_differ_have_other_hashes() -> None:
    values: list[Any] = [
        None, True, 1, 1.5, "1", b"1", [1], ["1"], [[1]], {"a": 1}, {"a": "1"}, {1: "a"}, {"1": "a"}, {1, 2},
        {1, 3}, np.arange(3), np.arange(3.0), np.arange(4), Path("a"), "a", "\ud800", float("nan"), [],
        {}, set(), "", b"", System("a", ModelSettings(id="x")), System("b", ModelSettings(id="x")),
    ]  # fmt: skip
    assert len({content_hash(value) for value in values}) == len(values)
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash((1, 2)) == content_hash([1, 2])
    assert content_hash(np.float64(1.5)) == content_hash(1.5)
