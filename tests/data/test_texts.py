"""Texts in: every format, every way to be wrong, templates, cuts and the leak check."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contrans_dist.data.contamination import leak_report, overlap, unit_hashes
from contrans_dist.data.corpus import cut_after, cut_end, cut_random, prepare_corpus
from contrans_dist.data.templates import frames, prompts
from contrans_dist.data.texts import read_texts, text_table
from contrans_dist.errors import RunError, UserError
from contrans_dist.store.location import Location
from contrans_dist.store.patience import briefly


def write(path: Path, content: bytes | str) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_lines_keep_their_order_and_duplicates(tmp_path: Path) -> None:
    table = read_texts(write(tmp_path / "t.txt", "one\r\ntwo\none"))
    assert table.column("text").to_pylist() == ["one", "two", "one"]
    assert table.column("row").to_pylist() == [0, 1, 2]
    ids = table.column("text_id").to_pylist()
    assert ids[0] == ids[2] != ids[1]


def test_jsonl_and_parquet_keep_other_columns(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "positive", "n": 1}, {"text": "b", "n": 2}]
    jsonl = read_texts(write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows))))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    parquet = read_texts(str(tmp_path / "t.parquet"))
    for table in (jsonl, parquet):
        assert table.column("label").to_pylist() == ["positive", None]
        assert table.column("n").to_pylist() == [1, 2]


def test_contrans_files_give_label_and_pair(tmp_path: Path) -> None:
    table = read_texts(write(tmp_path / "t.json", json.dumps({"pos": ["p0", "p1"], "neg": ["n0", "n1"]})))
    assert table.column("label").to_pylist() == ["positive", "positive", "negative", "negative"]
    assert table.column("pair_id").to_pylist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.txt", b"fine\nbad \xff byte\n", "line 2: expected UTF-8, found byte 0xff at 4"),
        ("t.txt", b"fine\n\nmore", "line 2: the text is empty"),
        ("t.txt", b"\n \n", "at least one text"),
        ("t.txt", b"", "at least one text"),
        ("t.jsonl", b'{"text": "a"}\n{"text": ', "line 2: expected a JSON object"),
        ("t.jsonl", b'{"text": 3}', "line 1: expected a JSON object with a string `text`"),
        ("t.jsonl", b'{"text": "a", "row": 1, "token_id": 3}', "column 'token_id'"),
        ("t.jsonl", b'{"text": "a", "block_007": 1}', "column 'block_007'"),
        ("t.jsonl", b'{"text": "a", "x": 1}\n{"text": "b", "x": "y"}', "column 'x' mixes types"),
        ("t.json", b'{"pos": ["a"]}', "lists `pos` and `neg`"),
        ("t.csv", b"a", "expected a .txt, .jsonl, .json or .parquet file"),
        ("t.parquet", b"no parquet", "expected a Parquet file"),
    ],
)
def test_bad_input_names_file_and_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(UserError) as error:
        read_texts(write(tmp_path / name, content))
    assert said in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt: no such file"):
        read_texts(str(tmp_path / "gone.txt"))


def test_templates() -> None:
    table = text_table({"text": ["it {rains}"], "who": ["Ann"]})
    assert prompts(table, None) == ["it {rains}"]
    assert prompts(table, "{who}: {text}\\nIs") == ["Ann: it {rains}\nIs"]
    with pytest.raises(UserError, match="no column 'name'"):
        prompts(table, "{text} {name}")
    with pytest.raises(UserError, match="place for the text"):
        prompts(table, "no place")
    with pytest.raises(UserError, match="expected names of columns"):
        prompts(table, "{text} {0}")
    # A raised two is no digit to a format string; one of another script is.
    assert prompts(text_table({"text": ["x"], "\u00b2": ["y"]}), "{text}{\u00b2}") == ["xy"]
    with pytest.raises(UserError, match="expected names of columns"):
        prompts(table, "{text} {\u0663}")


def test_cut_end_repeats_the_authors_file(shared: Path) -> None:
    folder = shared / "data" / "wikisplit"
    whole = (folder / "contrans_wiki_split.txt").read_text().split("\n")[:2000]
    theirs = (folder / "contrans_wiki_split_input.txt").read_text().split("\n")[:2000]
    assert cut_end(whole) == theirs


def test_random_cuts_are_prefixes_and_know_their_text() -> None:
    texts = [" ".join(f"w{i}" for i in range(n)) for n in (3, 9, 30)]
    prefixes, origins = cut_random(texts, per_text=5, seed=1)
    assert all(texts[origin].startswith(prefix) for prefix, origin in zip(prefixes, origins, strict=True))
    assert len(set(zip(prefixes, origins, strict=True))) == len(prefixes)
    assert [origins.count(i) for i in range(3)] == [1, 5, 5]
    assert cut_random(texts, 5, 1) == (prefixes, origins)
    assert cut_random(texts, 5, 2) != (prefixes, origins)


def test_prepared_corpus_keeps_source_rows() -> None:
    table = prepare_corpus(text_table({"text": ["a b c d e f g h", "i j k l m n o p"]}), "random", 3, seed=0)
    assert table.column("source_row").to_pylist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(UserError, match="left no text"):
        prepare_corpus(text_table({"text": ["a"]}), "end")


def test_the_leak_check_sees_through_templates_stories_and_spelling() -> None:
    scenario = "You find a worm in your apple."
    seen = unit_hashes(
        [
            "Scenario: You find a worm in your apple.\nThe emotion of the above scenario is",
            "It was late. The dog ate all of your homework! Nobody laughed.",
        ]
    )
    assert overlap([scenario, "you find a worm, in your APPLE"], seen) == [
        scenario,
        "you find a worm, in your APPLE",
    ]
    assert overlap(["The dog ate all of your homework."], seen) == ["The dog ate all of your homework."]
    assert overlap(["You find a worm in your pear."], seen) == []


def test_leak_report_counts_each_side() -> None:
    report = leak_report(
        ["a b c d one", "a b c d two", "a b c d one"], unit_hashes(["a b c d one"]), np.empty(0, np.int64)
    )
    assert report == {
        "evaluated": 2, "overlap_vector": 1, "overlap_map": 0, "in_part": 0, "examples": ["a b c d one"],
    }  # fmt: skip


def test_nothing_is_found_by_vectors_that_do_not_say_what_they_have_seen() -> None:
    scored, nothing = ["a b c d one", "a b c d two"], np.empty(0, np.int64)
    seen = unit_hashes(scored[:1])

    def counts(of_vector: np.ndarray, of_map: np.ndarray) -> tuple[int | None, int | None]:
        report = leak_report(scored, of_vector, of_map, known=False)
        return report["overlap_vector"], report["overlap_map"]

    assert counts(nothing, nothing) == (None, None)
    assert counts(nothing, seen) == (None, 1)  # imported, then through a map
    assert counts(seen, nothing) == (1, None)  # one of several is known, and that is told
    for of_map, told in ((nothing, None), (unit_hashes(["a b c d three"]), None), (seen, 1)):
        report = leak_report(scored, seen, of_map, map_known=False)
        assert (report["overlap_vector"], report["overlap_map"]) == (1, told)


def test_official_emotion_files_overlap_completely(shared: Path) -> None:
    folder = shared / "data" / "emotions" / "contrans"
    for emotion in ("happiness", "anger", "fear"):
        refine = read_texts(str(folder / f"refine_{emotion}.json")).column("text").to_pylist()
        evaluated = read_texts(str(folder / f"eval_{emotion}.json")).column("text").to_pylist()
        scenarios = [text.rpartition("Scenario: ")[2].split("\n")[0] for text in evaluated]
        assert len(overlap(scenarios, unit_hashes(refine))) > 0.95 * len(scenarios)


CHINESE = "昨天下午你在苹果里发现了一条虫子。"
THAI = "คุณพบหนอนในแอปเปิลของคุณเมื่อวานนี้"


@pytest.mark.parametrize(
    "text", [CHINESE, THAI, "りんごの中に虫を見つけましたよね", "GPT-2 在 2019 年由 OpenAI 发布了一次"]
)
def test_texts_without_blanks_are_cut_inside_too(text: str) -> None:
    """A text without blanks was one word: never cut, or left out."""
    prefixes, _ = cut_random([text], 6, seed=0)
    assert len(set(prefixes)) == 6
    assert all(text.startswith(prefix) and len(prefix) >= 4 for prefix in prefixes)
    assert any(len(prefix) < len(text) for prefix in prefixes)
    [cut] = cut_end([text])
    assert cut
    assert text.startswith(cut)
    assert 2 <= len(text) - len(cut) <= 12


def test_prefixes_end_on_words_of_any_script() -> None:
    assert cut_after([CHINESE, "她发现了"], ["发现", "虫子"]) == (
        ["昨天下午你在苹果里发现", "昨天下午你在苹果里发现了一条虫子", "她发现"],
        [0, 0, 1],
    )
    assert cut_after(["It was very, very hot everywhere"], ["very"])[0] == ["It was very, very"]


def test_a_template_that_shows_braces_frames_the_text() -> None:
    table = text_table({"text": ["a", "b"], "who": ["Ann", "Bo"]})
    assert frames(table, "{{text}} {who}: {text}, {text}!\\n") == (
        ["{text} Ann: ", "{text} Bo: "], [", a!\n", ", b!\n"],
    )  # fmt: skip


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server on this machine; its address."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_texts_are_read_from_a_web_server(tmp_path: Path, web: str) -> None:
    (tmp_path / "my texts.txt").write_text("one\ntwo\n")
    (tmp_path / "more.jsonl").write_text('{"text": "three", "label": "a"}\n')
    pq.write_table(pa.table({"text": ["four", "five"]}), tmp_path / "table.parquet")
    assert read_texts(f"{web}/my%20texts.txt").column("text").to_pylist() == ["one", "two"]
    assert read_texts(f"{web}/more.jsonl").column("label").to_pylist() == ["a"]
    assert read_texts(f"{web}/table.parquet").column("text").to_pylist() == ["four", "five"]
    with pytest.raises(UserError, match=f"^{web}/none.txt: no such file$"):
        read_texts(f"{web}/none.txt")


def test_texts_on_the_hub_that_cannot_be_reached_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with briefly(), pytest.raises((UserError, RunError)) as raised:
        read_texts("hf://datasets/nobody/nothing/texts.jsonl")
    assert str(raised.value).startswith("hf://datasets/nobody/nothing/texts.jsonl: ")
    assert "\n" not in str(raised.value)


def test_what_can_only_be_read_is_not_written_to_nor_shown_with_secrets(web: str) -> None:
    with pytest.raises(UserError, match="can only be read"):
        (Location.parse(web) / "out.txt").write_json({})
    for text in ("https://me:s3cr3t@host/t.txt", "https://host/t.txt?signature=s3cr3t"):
        with pytest.raises(UserError, match="expected an address without") as raised:
            read_texts(text)
        assert "s3cr3t" not in str(raised.value)
