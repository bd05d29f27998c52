"""One shard: every row on its own text, the file laid out as promised, and any damage found."""

import gc
import hashlib
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from contrans_dist.config import CaptureSettings, ModelSettings
from contrans_dist.data.texts import text_table
from contrans_dist.errors import RunError, UserError
from contrans_dist.harvest import shard_files
from contrans_dist.harvest.compute import compute_shard
from contrans_dist.harvest.manifest import identity_of
from contrans_dist.harvest.shard_files import check_shard, read_norms
from contrans_dist.harvest.shards import (
    HarvestSpec,
    Shard,
    ShardReport,
    plan_shards,
    row_ranges,
    rows_per_shard,
)
from contrans_dist.models import LanguageModel, load_model, model_facts, resolve_blocks
from contrans_dist.store.location import Location
from contrans_dist.store.shard_reader import opened
from tests.tiny import CONTEXT, save_tiny
from tests.truth import block_rows, by_transformers, read_all

N_BLOCKS, D = 3, 16
LONG = "the boy and the dog " * CONTEXT
TEXTS = [
    "The boy was happy.",
    "She felt sad, angry and afraid when the big dog ran after her cat.",
    "dog",
    LONG,
    "The boy was happy.",
    "One day a bird asked the old man",
    "no",
]
LABELS = ["positive", "negative", "", "negative", "positive", "x", "y"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama", n_blocks=N_BLOCKS, d=D)


@pytest.fixture(scope="module")
def lm(folder: Path) -> LanguageModel:
    return load_model(str(folder), head=False)


def spec_for(folder: Path, texts: pa.Table, out: Path, capture: CaptureSettings) -> HarvestSpec:
    facts = model_facts(str(folder))
    blocks = resolve_blocks(capture.blocks, facts.n_blocks)
    size = capture.shard_size or texts.num_rows
    identity = identity_of(ModelSettings(id=str(folder)), facts, capture, blocks, size, texts, "prompts")
    return HarvestSpec(identity, capture, facts.d, Location.parse(out))


def make(
    folder: Path,
    lm: LanguageModel,
    texts: pa.Table,
    out: Path,
    capture: CaptureSettings,
    order: list[int] | None = None,
) -> tuple[list[Shard], dict[int, ShardReport]]:
    """Compute all shards, in the given order."""
    shards = plan_shards(spec_for(folder, texts, out, capture))
    reports = {}
    for index in order or range(len(shards)):
        shard = shards[index]
        reports[index] = compute_shard(lm, shard, texts.slice(shard.start, shard.rows))
    return shards, reports


def test_a_shard_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    """Its model goes with the last name for it, not when garbage is next looked for."""
    texts, whole = text_table({"text": TEXTS[:3]}), load_model(str(folder), head=False)
    (shard,) = plan_shards(spec_for(folder, texts, tmp_path, CaptureSettings()))
    model = weakref.ref(whole.model)
    gc.collect()
    gc.disable()
    try:
        compute_shard(whole, shard, texts)
        del whole
        assert model() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("template", [None, "[{label}] {text} is"])
def test_every_row_is_its_own_text(
    folder: Path, lm: LanguageModel, tmp_path: Path, template: str | None
) -> None:
    """Texts of many lengths, two of them identical and one too long, in shards and batches of several."""
    texts = text_table({"text": TEXTS, "label": LABELS, "pair_id": list(range(7))})
    capture = CaptureSettings(shard_size=3, batch_tokens=48, template=template)
    shards, reports = make(folder, lm, texts, tmp_path, capture)
    frame = read_all(tmp_path)
    if template is None:
        prompts = TEXTS
    else:
        prompts = [f"[{label}] {text} is" for text, label in zip(TEXTS, LABELS, strict=True)]
    wanted, ids = by_transformers(folder, prompts)
    np.testing.assert_allclose(block_rows(frame), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert frame["row"].tolist() == list(range(7))
    assert frame["text"].tolist() == TEXTS
    hashes = [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in TEXTS]
    assert frame["text_id"].tolist() == hashes
    assert frame["n_tokens"].tolist() == [len(tokens) for tokens in ids]
    assert frame["token_id"].tolist() == [tokens[-1] for tokens in ids]
    assert frame["label"].tolist() == LABELS
    assert frame["pair_id"].tolist() == list(range(7))
    assert [shard.rows for shard in shards] == [3, 3, 1]
    assert sum(report.facts.truncated for report in reports.values()) == 1
    assert sum(report.facts.tokens for report in reports.values()) == sum(map(len, ids))
    norms = np.concatenate([reports[index].norms for index in range(3)])
    np.testing.assert_allclose(norms, np.linalg.norm(wanted, axis=2), rtol=1e-4)


@pytest.mark.parametrize(("bos", "pad"), [(False, True), (True, False), (False, False)])
def test_tokenizers_without_bos_or_pad(tmp_path: Path, bos: bool, pad: bool) -> None:
    folder = save_tiny(tmp_path / "model", "gpt_neox", n_blocks=2, d=D, bos=bos, pad=pad)
    small = load_model(str(folder), head=False)
    texts = text_table({"text": ["a", "She felt sad, angry and afraid", "the dog"]})
    _, reports = make(folder, small, texts, tmp_path / "set", CaptureSettings())
    frame = read_all(tmp_path / "set")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for index, text in enumerate(texts.column("text").to_pylist()):
        tokens = tokenizer(text)["input_ids"]
        assert (tokens[0] == 0) == bos
        with torch.no_grad():
            states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        np.testing.assert_allclose(frame["block_000"][index], states[1][0, -1].numpy(), atol=1e-5)
        assert frame["n_tokens"][index] == len(tokens)
    assert reports[0].facts.canary < 1e-5


def test_the_file_is_laid_out_as_promised(folder: Path, lm: LanguageModel, tmp_path: Path) -> None:
    texts = text_table({"text": [f"the dog {i}" for i in range(300)], "label": ["a", "b"] * 150})
    make(folder, lm, texts, tmp_path, CaptureSettings(blocks="0,2"))
    path = tmp_path / "shard-00000.parquet"
    file = pq.ParquetFile(path)
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), D)
    assert [(field.name, field.type, field.nullable) for field in file.schema_arrow] == [
        ("row", pa.int64(), False),
        ("text_id", pa.string(), False),
        ("text", pa.string(), False),
        ("n_tokens", pa.int32(), False),
        ("token_id", pa.int32(), False),
        ("label", pa.string(), True),
        ("block_000", vector, False),
        ("block_002", vector, False),
    ]
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [128, 128, 44]
    for group in groups:
        for column in (group.column(index) for index in range(group.num_columns)):
            assert column.compression == "ZSTD"
            assert not column.has_dictionary_page
            assert not column.is_stats_set
            encoding = "BYTE_STREAM_SPLIT" if column.path_in_schema.startswith("block_") else "PLAIN"
            assert set(column.encodings) <= {encoding, "RLE"}
            assert encoding in column.encodings
    facts = json.loads(file.schema_arrow.metadata[b"contrans"])
    assert facts["identity"]["blocks"] == [0, 2]
    chunk = groups[1].column(6)
    damaged = bytearray(path.read_bytes())
    damaged[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(pa.BufferReader(bytes(damaged)), page_checksum_verification=True)


def test_bytes_depend_on_nothing_that_went_before(folder: Path, lm: LanguageModel, tmp_path: Path) -> None:
    texts, capture = text_table({"text": TEXTS}), CaptureSettings(shard_size=2)
    make(folder, lm, texts, tmp_path / "a", capture)
    again = load_model(str(folder), head=False)
    make(folder, again, texts, tmp_path / "b", capture, order=[3, 1, 0, 2])
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.fixture(scope="module")
def shard(
    folder: Path, lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Shard, ShardReport, bytes]:
    out = tmp_path_factory.mktemp("set")
    texts = text_table({"text": TEXTS, "label": LABELS})
    shards, reports = make(folder, lm, texts, out, CaptureSettings(blocks="0:2", shard_size=4))
    return shards[1], reports[1], (out / shards[1].name).read_bytes()


def test_a_sound_shard_is_taken_in_as_it_was_made(
    shard: tuple[Shard, ShardReport, bytes],
) -> None:
    planned, report, data = shard
    planned.location.write_bytes(data)
    for entry in (None, report.entry):
        found = check_shard(planned, entry)
        assert isinstance(found, ShardReport)
        assert (found.entry, found.facts) == (report.entry, report.facts)
        np.testing.assert_array_equal(found.norms, report.norms)
    assert report.norms is not None
    np.testing.assert_allclose(read_norms(planned), report.norms, rtol=1e-6)


def test_a_cut_shard_is_found(shard: tuple[Shard, ShardReport, bytes]) -> None:
    planned, _, data = shard
    for length in [*range(0, len(data), 97), len(data) - 1]:
        planned.location.write_bytes(data[:length])
        assert isinstance(check_shard(planned, None), str)


def test_a_flipped_bit_is_found_or_changes_nothing(
    shard: tuple[Shard, ShardReport, bytes],
) -> None:
    """In the footer, of which Parquet keeps no checksum, on opening, in the pages on reading, and anywhere by
    `verify`: no other row, name or count may come in."""
    planned, report, data = shard
    whole = pq.read_table(pa.BufferReader(data))
    pages = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    found = 0
    for position in range(0, len(data), 11):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        planned.location.write_bytes(bytes(damaged))
        assert isinstance(check_shard(planned, report.entry), str) == (position >= pages)
        result = check_shard(planned, None)
        if position < pages:
            with pytest.raises(UserError), opened(planned.location) as shard_file:
                shard_file.verify()
        try:
            with opened(planned.location) as shard_file:
                assert shard_file.read(whole.column_names, 0, planned.rows).equals(whole)
        except UserError as error:
            found += planned.name in str(error)
            continue
        if isinstance(result, ShardReport):
            assert (result.facts, result.entry.rows) == (report.facts, report.entry.rows)
    assert found > len(data) / 11 / 2


def test_a_shard_of_other_settings_or_rows_is_not_taken(
    folder: Path, shard: tuple[Shard, ShardReport, bytes]
) -> None:
    planned, _, data = shard
    planned.location.write_bytes(data)
    float16 = planned.spec.identity.model_copy(update={"dtype": "float16"})
    other = replace(planned, spec=replace(planned.spec, identity=float16))
    assert check_shard(other, None) == "it was harvested with other settings"
    moved = replace(planned, start=planned.start + 1)
    assert check_shard(moved, None) == "its rows are not the planned ones"
    planned.location.write_bytes(b"no parquet at all")
    assert check_shard(planned, None) == "expected a Parquet file that is whole"


def test_nan_names_its_rows_and_publishes_nothing(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama", n_blocks=2, d=D)
    spoilt = load_model(str(folder), head=False)
    token = spoilt.tokenizer("dog", add_special_tokens=False)["input_ids"][-1]
    spoilt.model.get_input_embeddings().weight[token] = float("inf")
    texts = text_table({"text": ["the cat", "no", "the cat", "a dog", "a cat", "big dog"]})
    shards = plan_shards(spec_for(folder, texts, tmp_path / "set", CaptureSettings(shard_size=3)))
    compute_shard(spoilt, shards[0], texts.slice(0, 3))
    with pytest.raises(RunError, match=r"shard-00001.* 2 rows .*\(row 3, 5; first at block 0"):
        compute_shard(spoilt, shards[1], texts.slice(3, 3))
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["shard-00000.parquet"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("harm", [Path.unlink, _cut])
def test_what_the_disk_loses_at_once_is_a_failure_and_no_bad_input(
    harm: Callable[[Path], None],
    folder: Path,
    lm: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_files, "hash_footer", harm)
    with pytest.raises(RunError, match="what was written cannot be read again"):
        make(folder, lm, text_table({"text": TEXTS}), tmp_path / "set", CaptureSettings())
    assert not list((tmp_path / "set").iterdir())


def test_a_text_too_short_is_named_by_its_place_in_the_input(
    folder: Path, lm: LanguageModel, tmp_path: Path
) -> None:
    texts = text_table({"text": ["the cat and the dog"] * 4 + ["a"]})
    _, reports = make(folder, lm, texts, tmp_path, CaptureSettings(shard_size=2, position=-3))
    (left_out,) = [text for report in reports.values() for text in report.facts.skipped]
    assert (left_out.row, left_out.reason) == (4, "position -3 asked for, but it has 2 tokens")
    assert reports[2].entry.rows == 0


def test_a_text_that_the_tokenizer_dies_of_is_never_given_to_it(
    folder: Path, lm: LanguageModel, tmp_path: Path
) -> None:
    """It stands between two that are left out as they are too short."""

    def careful(texts: list[str], **options: Any) -> Any:
        assert LONG not in texts
        return lm.tokenizer(texts, **options)

    lines = ["a", LONG, "b", *TEXTS[4:6]]
    texts = text_table({"text": lines})
    (shard,) = plan_shards(spec_for(folder, texts, tmp_path, CaptureSettings(position=-3)))
    report = compute_shard(replace(lm, tokenizer=careful), shard, texts, fatal={1: "it died"})
    assert [(text.row, text.reason[:8]) for text in report.facts.skipped] == [
        (0, "position"), (1, "it died"), (2, "position"),
    ]  # fmt: skip
    assert read_all(tmp_path)["text"].tolist() == lines[3:]


def test_shards_hold_every_row_once() -> None:
    for n_rows in (1, 7, 64, 65):
        for size in (1, 2, 7, 64, 100):
            ranges = row_ranges(3, 3 + n_rows, size)
            assert [row for rows in ranges for row in rows] == list(range(3, 3 + n_rows))
            assert len(ranges) == -(-n_rows // size)


@pytest.mark.parametrize(("n_blocks", "d"), [(33, 4096), (80, 8192), (1, 4096)])
def test_a_large_harvest_is_cut_into_files_of_64_to_256_mb(n_blocks: int, d: int) -> None:
    stored = n_blocks * d * 2 * 1.4
    rows = rows_per_shard(10_000_000, n_blocks, d, None)
    assert 64e6 <= rows * stored <= 256e6
    assert rows_per_shard(10_000_000, n_blocks, d, 17) == 17
