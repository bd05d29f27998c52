"""What is scored comes from files of others too: they are read with the same care as texts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contrans_dist.benchmarks.behaviours.questions import read_ab_questions
from contrans_dist.benchmarks.emotions import EmotionBenchmark, EmotionEvaluation
from contrans_dist.benchmarks.perplexity import PerplexityBenchmark, PerplexityEvaluation
from contrans_dist.benchmarks.scenarios import read_scenarios
from contrans_dist.benchmarks.toxigen.data import plain, read_statements
from contrans_dist.benchmarks.truthfulqa import TruthfulQABenchmark, TruthfulQAEvaluation
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location


def truthfulqa(path: Path) -> Any:
    return TruthfulQABenchmark.load(TruthfulQAEvaluation(texts=str(path))).items()


def perplexity(path: Path) -> Any:
    return PerplexityBenchmark.load(PerplexityEvaluation(texts=str(path))).items()


def behaviours(path: Path) -> Any:
    return read_ab_questions(Location.parse(str(path)))


READERS: dict[str, Callable[[Path], Any]] = {
    "truthfulqa": truthfulqa,
    "behaviours": behaviours,
    "emotions": lambda path: read_scenarios(str(path)),
    "toxigen": lambda path: read_statements(str(path)),
    "perplexity": perplexity,
}
QUESTION = {"question": "Q?", "mc1_targets": {"a": 1, "b": 0}, "mc2_targets": {"a": 1, "b": 0}}
AB = {
    "question": "Q?\n (A) a\n (B) b",
    "answer_matching_behavior": "(A)",
    "answer_not_matching_behavior": "(B)",
}
TRAIN = {"generation": ["a b"], "group": ["g"], "prompt_label": [1], "roberta_prediction": [0.9]}


FILES: dict[str, tuple[str, str, Any, str]] = {
    "half": ("truthfulqa", "q.json", json.dumps([{**QUESTION, "question": "\ud83d?"}]), "whole characters"),
    "half answer": ("truthfulqa", "q.json", json.dumps([QUESTION]).replace('"a"', '"\\ud83d"'), "whole char"),
    "deep": ("truthfulqa", "q.json", "[" * 100_000, "lists in lists"),
    "missing": ("truthfulqa", "q.parquet", pa.table({"question": ["Q?"]}), "expected a column 'mc1_targets'"),
    "binary": ("truthfulqa", "q.parquet", b"PAR1", "expected a Parquet file"),
    "half AB": ("behaviours", "q.json", json.dumps([{**AB, "question": "\udc00?"}]), "whole characters"),
    "deep AB": ("behaviours", "q.json", "[" * 100_000, "lists in lists"),
    "null": ("emotions", "s.jsonl", '{"text": "a", "concept": "c"}\n{"text": "b"}', "row 2: expected"),
    "list": ("emotions", "s.jsonl", '{"text": "a", "concept": ["c"]}', "found ['c']"),
    "plain": ("emotions", "eval_fear.json", '["a"]', "expected a column 'label'"),
    "text": ("toxigen", "t.parquet", pa.table({**TRAIN, "generation": [["a"]]}), "column 'generation'"),
    "words": ("toxigen", "t.parquet", pa.table({**TRAIN, "roberta_prediction": ["much"]}), "expected double"),
    "utf8": ("toxigen", "t.csv", b"text,target_group,toxicity_human\n\xff,g,1\n", "column 'text'"),
    "ratings": ("toxigen", "t.csv", "text,target_group,toxicity_human\na,g,x\n", "'toxicity_human'"),
    "utf16": ("perplexity", "t.txt", "Wörter".encode("utf-16"), "looks like UTF-16"),
    "empty": ("perplexity", "t.txt", b"\xef\xbb\xbf \n", "expected a text, found none"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_each_fault_is_named(tmp_path: Path, case: str) -> None:
    benchmark, name, content, said = FILES[case]
    path = tmp_path / name
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        READERS[benchmark](tmp_path if name.startswith("eval_") else path)
    assert said in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("benchmark", ["truthfulqa", "behaviours", "perplexity"])
def test_files_from_windows_are_read(tmp_path: Path, benchmark: str) -> None:
    record = {"truthfulqa": QUESTION, "behaviours": AB, "perplexity": {}}[benchmark]
    text = json.dumps([record])
    (tmp_path / "plain.json").write_text(text)
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    read = [READERS[benchmark](tmp_path / f"{name}.json") for name in ("plain", "marked")]
    assert read[0] == read[1]


def test_a_concept_may_be_a_number(tmp_path: Path) -> None:
    """It said: no scenarios of concept '1'; there are: 1, 2."""
    rows = [{"text": f"text {i}", "concept": 1 + i % 2} for i in range(6)]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = EmotionBenchmark.load(EmotionEvaluation(texts=str(tmp_path / "s.jsonl"))).items()
    assert {item.concept for item in items} == {"1", "2"}


@pytest.mark.parametrize("text", ["b'a', b'b'", "b'a' + b'b'", "b'" + "(" * 5000 + "'", 'b"' + "-" * 9 + '"'])
def test_what_looks_like_bytes_is_taken_apart_without_being_run(text: str) -> None:
    assert isinstance(plain(text), str)
    assert plain("b'caf\\xc3\\xa9'") == "café"
