"""Files of texts, recipes, templates and conditions, made at random: they are read, or refused in a line.

Nothing else may be raised, nothing may hang or fill memory, and what is read can be used. A few seconds by
default; `pytest -m slow` tries thousands of cases.
"""

import io
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contrans_dist.benchmarks.behaviours.questions import read_ab_questions
from contrans_dist.benchmarks.scenarios import read_scenarios
from contrans_dist.benchmarks.toxigen.data import read_statements
from contrans_dist.benchmarks.truthfulqa import TruthfulQABenchmark, TruthfulQAEvaluation
from contrans_dist.config.recipe import load_recipe, runs_of
from contrans_dist.data.contamination import overlap, unit_hash, unit_hashes
from contrans_dist.data.corpus import prepare_corpus
from contrans_dist.data.table_hash import table_hash
from contrans_dist.data.templates import prompts, template_fields
from contrans_dist.data.texts import read_texts, text_table
from contrans_dist.errors import UserError
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.vectors.from_activations import select_rows
from tests.sets import make_set

RECIPES = Path(__file__).parents[2] / "contrans_dist" / "pipeline" / "recipes"
MEGABYTES = 400
Check = Callable[..., None]


@pytest.fixture(params=[200, pytest.param(3000, marks=pytest.mark.long)], ids=["short", "long"])
def fuzz(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """A decorator that runs a check at once on as many cases as this profile has."""
    profile = settings(
        max_examples=request.param, deadline=None, database=None, derandomize=request.param < 1000,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def run(*strategies: Any) -> Callable[[Check], None]:
        return lambda check: profile(given(*strategies)(check))()

    yield run
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEGABYTES * 1024


def in_a_line(work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What `work` returns; None where it refuses, which it does in one line that can be printed."""
    try:
        return work(*arguments, **named)
    except UserError as error:
        said = str(error)
        assert "\n" not in said
        assert len(said) < 3000
        said.encode(errors="backslashreplace")
        return None


def used(table: pa.Table | None) -> None:
    """All that is done with texts before a model reads them."""
    if table is None:
        return
    assert table.num_rows == len(prompts(table, None)) > 0
    assert len(table_hash(table)) == 64
    pq.write_table(table, pa.MockOutputStream())
    in_a_line(prompts, table, "{text}" + "".join(f"{{{name}}}" for name in table.column_names))
    assert in_a_line(unit_hashes, prompts(table, None)) is not None
    for cut in ("end", "random", "after"):
        in_a_line(prepare_corpus, table, cut, per_text=2, words=["a", "."])


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with a few places changed, cut or doubled."""
    places = st.tuples(
        st.integers(0, len(data)), st.integers(0, 64), st.binary(max_size=6), st.sampled_from("rdx")
    )

    def carry_out(edits: list[tuple[int, int, bytes, str]]) -> bytes:
        found = data
        for start, length, put, how in edits:
            piece = found[start : start + length]
            middle = {"r": put, "d": piece + piece, "x": b""}[how]
            found = found[:start] + middle + found[start + length :]
        return found

    return st.lists(places, min_size=1, max_size=4).map(carry_out)


def parquet(**columns: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


TEXTS = ["one text of words", "another text. With two sentences!"]
VALID: dict[str, list[bytes]] = {
    "txt": ["\n".join(TEXTS).encode()],
    "jsonl": [b'{"text": "one", "n": 1, "t": ["a"]}\n{"text": "two", "m": {"a": [1, null]}}\n'],
    "json": [
        b'{"pos": ["a", "b"], "neg": ["c"]}', b'["a", "b"]',
        b'[{"question": "q", "label": "x"}, {"text": "t"}]',
        b'[{"question": "Q?", "mc1_targets": {"a": 1, "b": 0}, "mc2_targets": {"a": 1, "b": 0}}]',
        b'[{"question": "Q?\\n (A) a\\n (B) b", "answer_matching_behavior": "(A)", '
        b'"answer_not_matching_behavior": "(B)"}]',
    ],
    "parquet": [
        parquet(text=TEXTS, tags=[["a", None], []], n=[1.5, None]),
        parquet(text=TEXTS, concept=pa.array(["a", "b"]).dictionary_encode()),
        parquet(text=TEXTS, when=pa.array([1, 2], pa.timestamp("ns"))),
        parquet(generation=TEXTS, group=["g", "h"], prompt_label=[1, 0], roberta_prediction=[0.5, 0.1]),
    ],
    "csv": [b"text,target_group,toxicity_human\n\"b'a b'\",g,3\nc d,h,1.5\n"],
}  # fmt: skip
READERS: list[Callable[[str], Any]] = [
    read_scenarios,
    read_statements,
    lambda path: read_ab_questions(Location.parse(path)),
    lambda path: TruthfulQABenchmark.load(TruthfulQAEvaluation(texts=path)).items(),
]
RAW = st.sampled_from(sorted(VALID)).flatmap(
    lambda suffix: st.tuples(
        st.just(suffix), st.one_of(st.binary(max_size=300), *(mutated(data) for data in VALID[suffix]))
    )
)


def test_bytes_of_any_kind(tmp_path: Path, fuzz: Any) -> None:
    @fuzz(RAW)
    def check(case: tuple[str, bytes]) -> None:
        path = tmp_path / f"t.{case[0]}"
        path.write_bytes(case[1])
        used(in_a_line(read_texts, str(path)))
        for reader in READERS:
            in_a_line(reader, str(path))


LETTERS = st.text(st.characters(exclude_categories=()), max_size=8)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), LETTERS, st.integers(2**60, 2**70),
    st.sampled_from(["\ud83d", "text", "", "2020-01-01", "x" * 500]),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(LETTERS, inner, max_size=3)),
    max_leaves=6,
)
NAMES = st.one_of(
    LETTERS,
    st.sampled_from(["text", "label", "pair_id", "row", "Text", "block_000", "block_²", "n_tokens", "a.b"]),
)
RECORDS = st.lists(
    st.builds(
        lambda text, rest: {**rest, "text": text}, LETTERS | SCALARS, st.dictionaries(NAMES, JSON, max_size=3)
    ),
    max_size=4,
)  # fmt: skip


def test_objects_of_any_kind(tmp_path: Path, fuzz: Any) -> None:
    @fuzz(RECORDS, st.booleans())
    def check(records: list[dict[str, Any]], ascii_only: bool) -> None:
        lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
        for name, text in (("t.jsonl", "\n".join(lines)), ("t.json", f"[{','.join(lines)}]")):
            path = tmp_path / name
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            used(in_a_line(read_texts, str(path)))
            in_a_line(read_scenarios, str(path))


ARRAYS = [
    pa.array(TEXTS), pa.array(TEXTS, pa.large_string()), pa.array(TEXTS).cast(pa.string_view()),
    pa.array(TEXTS).dictionary_encode(), pa.array([b"\xff", b"a"]),
    pa.array([b"\xff", b"a"]).view(pa.string()),
    pa.nulls(2), pa.array(["a", None]), pa.array([1, 2**60]), pa.array([float("nan"), 1.5], pa.float32()),
    pa.array([["a"], None]), pa.array([{"a": 1}, {"a": None}]),
    pa.array([[("k", "v")], []], pa.map_(pa.string(), pa.string())),
    pa.array([10**17, 1], pa.timestamp("s")), pa.array([1, None], pa.timestamp("ns", "Europe/Berlin")),
    pa.array([1, 2], pa.time64("ns")), pa.array([1, 2], pa.duration("ns")), pa.array([1, 2], pa.date64()),
    pa.array([1, 2]).cast(pa.decimal128(30, 2)), pa.array([1, 2]).cast(pa.decimal256(60, 2)),
    pa.array([1, 2], pa.float16()), pa.array([b"0" * 16, None], pa.uuid()),
    pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)),
    pa.array([["a"], ["b"]], pa.list_view(pa.string())), pa.array([{}, {}]), pa.array([[{"b": []}], []]),
    pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
]  # fmt: skip


def test_tables_of_any_kind(tmp_path: Path, fuzz: Any) -> None:
    """Of columns in memory, and as Parquet where that can hold them."""

    @fuzz(st.lists(st.tuples(NAMES, st.sampled_from(ARRAYS)), max_size=4), st.sampled_from(ARRAYS[:8]))
    def check(columns: list[tuple[str, pa.Array]], text: pa.Array) -> None:
        columns = [(name, array) for name, array in columns if name.isprintable()]
        table = pa.Table.from_arrays(
            [text, *(array for _, array in columns)], names=["text", *(name for name, _ in columns)]
        )
        used(in_a_line(text_table, table))
        try:
            pq.write_table(table, tmp_path / "t.parquet")
        except pa.ArrowException:
            return
        used(in_a_line(read_texts, str(tmp_path / "t.parquet")))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> ActivationSet:
    held = {f"c{i}": array for i, array in enumerate(ARRAYS[:-3]) if i not in (5, 13)}
    folder = tmp_path_factory.mktemp("sets") / "set"
    return make_set(folder, {0: np.ones((2, 2), np.float32)}, 1, **held)


def test_conditions_of_any_kind(rows: ActivationSet, fuzz: Any) -> None:
    names = [name for name in rows.columns if name.startswith("c")]
    values = st.one_of(
        LETTERS, st.sampled_from(["a", "1", "1.5", "nan", "inf", "1e999", "true", "k", TEXTS[0]])
    )
    pieces = st.tuples(st.sampled_from([*names, "", "text"]), st.sampled_from(["=", "", "=="]), values)

    @fuzz(st.lists(pieces.map("".join), max_size=3), st.sampled_from([",", "\\,", ",,"]))
    def check(given_pieces: list[str], between: str) -> None:
        found = in_a_line(select_rows, rows, between.join(given_pieces))
        assert found is None or 0 < len(found) <= 2

    for name in names:
        in_a_line(select_rows, rows, f"{name}=nothing like it")


def test_templates_of_any_kind(fuzz: Any) -> None:
    table = text_table({"text": ["{text}", "b"], "n": [1, 2], "a.b": ["x", "y"]})
    pieces = st.sampled_from(
        ["{", "}", "{text}", "n", "text", ":", "!r", ".", "[0]", "{n}", "\\n", "{a.b}", ">9", "\ud83d"]
    )

    @fuzz(st.lists(pieces, max_size=8).map("".join) | LETTERS)
    def check(template: str) -> None:
        fields = in_a_line(template_fields, template)
        found = in_a_line(prompts, table, template)
        assert found is None or (fields and len(found) == 2 and all(len(each) < 200 for each in found))


YAML_PIECES = [
    "[]", "{}", "null", "~", "1", "-1", "1e400", ".nan", ".inf", "[.inf, 1]", "true", "'x'", '"\\ud83d"',
    "\x00",
    "2024-99-99", "!!bool x", "!!binary x", "!!set {a}", "!!python/name:os.system", "&a [*a]", "*a",
    "&a",
    "[1, 2", "{a: b}", "|", "- a", "? b", "<<: *a", "0x1f", "1:1", "9" * 5000, "\t", "%YAML 1.1", "---",
    "...", "#", "a: 1", "{text.__class__}", "demo:x", "é", "text: {text}",
]  # fmt: skip


def recipes() -> st.SearchStrategy[str]:
    """Bundled recipes with lines taken out, doubled, moved or given other values."""

    @st.composite
    def draw_one(draw: st.DrawFn) -> str:
        lines = draw(st.sampled_from(TEXT_OF_RECIPES)).split("\n")
        for _ in range(draw(st.integers(1, 4))):
            place = draw(st.integers(0, len(lines) - 1))
            how = draw(st.sampled_from(["delete", "double", "move", "value", "indent", "insert"]))
            piece = draw(st.sampled_from(YAML_PIECES) | LETTERS)
            if how == "delete" and len(lines) > 1:
                del lines[place]
            elif how == "double":
                lines.insert(place, lines[place])
            elif how == "move":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(place))
            elif how == "value":
                lines[place] = f"{lines[place].partition(':')[0]}: {piece}"
            elif how == "indent":
                lines[place] = " " * draw(st.integers(0, 6)) + lines[place].lstrip()
            else:
                lines.insert(place, piece)
        return "\n".join(lines)

    return draw_one()


TEXT_OF_RECIPES = [path.read_text() for path in sorted(RECIPES.glob("*.yaml"))]
KEYS = st.sampled_from(
    [
        "name",
        "source",
        "source.id",
        "map.blocks",
        "evaluations.x.texts",
        "runs.a",
        "small",
        "corpus.template",
        "",
        "a.b",
    ]
)


def test_recipes_of_any_kind(tmp_path: Path, fuzz: Any) -> None:
    sets = st.lists(st.tuples(KEYS, st.sampled_from(YAML_PIECES) | LETTERS).map("=".join), max_size=2)

    @fuzz(
        st.one_of(recipes().map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=200)),
        sets,
    )
    def check(data: bytes, changes: list[str]) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(data)
        for small in (False, True):
            recipe = in_a_line(load_recipe, path, changes, small)
            if recipe is None:
                continue
            json.dumps(recipe.model_dump(mode="json"), ensure_ascii=False, allow_nan=False).encode()
            in_a_line(runs_of, recipe)


def test_a_text_that_was_seen_is_found(fuzz: Any) -> None:
    """Whatever its letters are, in whatever lines it stands."""
    words = st.text(st.characters(exclude_categories=()), max_size=40)

    @fuzz(words, words)
    def check(text: str, around: str) -> None:
        seen = unit_hashes([f"{around}\n{text}\n{around}"])
        found = unit_hash(text.strip())
        plain = "\n" not in text and len(text.splitlines()) < 2
        if plain and found is not None:
            assert overlap([text], seen) == [text]
        assert overlap([text], unit_hashes([text])) == ([text] if len(unit_hashes([text])) else [])
