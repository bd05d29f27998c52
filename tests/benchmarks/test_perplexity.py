"""Perplexity against transformers' own loss in a loop over windows, and its documented recipe."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import ByT5Tokenizer

from contrans_dist.benchmarks import Benchmark
from contrans_dist.benchmarks.perplexity import PerplexityBenchmark, PerplexityEvaluation, windows
from contrans_dist.benchmarks.statistics import ratio_interval
from contrans_dist.engine.scoring import BASE, Intervention
from contrans_dist.errors import RunError, UserError
from contrans_dist.models import LanguageModel, load_model, wrap_model
from tests.tiny import CORPUS, tiny_model, tiny_tokenizer

TEXT = "\n".join(f" {line}\n" if i % 3 else f"{line} Füße {i}" for i, line in enumerate(CORPUS))


def tiny_lm(**tokenizer: bool) -> LanguageModel:
    return wrap_model(tiny_model("llama"), tiny_tokenizer(**tokenizer))


def load(folder: Path, text: str = TEXT, **more: object) -> PerplexityBenchmark:
    (folder / "text.txt").write_text(text)
    return PerplexityBenchmark.load(
        PerplexityEvaluation(texts=str(folder / "text.txt"), **more)  # type: ignore[arg-type]
    )


def by_recipe(lm: LanguageModel, ids: list[int], window: int, stride: int, front: list[int]) -> tuple:
    """(sum of losses, tokens) by the recipe of transformers' documentation: its loop, the model's own loss.

    `front` stands before every window; its own losses are masked away, as the recipe masks what was seen.
    """
    nll, count, previous = 0.0, 0, 0
    room = window - len(front)
    for begin in range(0, len(ids), stride):
        end = min(begin + room, len(ids))
        target_length = end - previous
        input_ids = torch.tensor([front + ids[begin:end]])
        targets = input_ids.clone()
        targets[:, :-target_length] = -100
        with torch.no_grad():
            loss = lm.model(input_ids, labels=targets).loss
        scored = int((targets[0, 1:] != -100).sum())  # the model shifts labels: the first has no prediction
        nll, count = nll + loss.item() * scored, count + scored
        previous = end
        if end == len(ids):
            break
    return nll, count


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("window", "stride"), [(32, 16), (32, 7), (20, 19), (128, 64), (None, None)])
def test_equals_transformers_own_loss_however_the_text_is_split(tmp_path, monkeypatch, bos, window, stride):
    monkeypatch.setattr(windows, "PASSAGE", 150)
    lm = tiny_lm(bos=bos)
    bench = load(tmp_path, window=window, stride=stride)
    assert isinstance(bench, Benchmark)
    items = bench.items()
    assert len(items) > 8
    ids = lm.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    expected = by_recipe(lm, ids, window or 128, stride or 64, [0] if bos else [])
    for splits in ([items], [items[:3], items[3:4], items[4:]], [[items[5], items[0]]]):
        rows = [row for part in splits for row in bench.score(lm, part, [BASE]).to_pylist()]
        if len(rows) == len(items):
            assert sum(row["nll"] for row in rows) == pytest.approx(expected[0], rel=1e-5)
            assert sum(row["tokens"] for row in rows) == expected[1] == len(ids) - (not bos)
            whole = {row["item"]: row["nll"] for row in rows}
        assert all(row["nll"] == pytest.approx(whole[row["item"]], rel=1e-4) for row in rows)
        assert {(row["window"], row["stride"]) for row in rows} == {(window or 128, stride or 64)}


def test_windows_that_do_not_overlap_skip_what_nothing_stands_before(tmp_path):
    lm = tiny_lm(bos=False)
    bench = load(tmp_path, window=16, stride=16)
    ids = lm.tokenizer(TEXT)["input_ids"]
    nll, count = by_recipe(lm, ids, 16, 16, [])
    rows = bench.score(lm, bench.items(), [BASE]).to_pylist()
    assert count == len(ids) - math.ceil(len(ids) / 16)
    assert sum(row["tokens"] for row in rows) == count
    assert sum(row["nll"] for row in rows) == pytest.approx(nll, rel=1e-5)


def test_steered_common_and_item_by_item(tmp_path, monkeypatch):
    """Under a vector of its own, each passage's tokens are scored as if that vector were everyone's."""
    monkeypatch.setattr(windows, "PASSAGE", 200)
    lm = tiny_lm()
    bench = load(tmp_path, window=48, stride=20)
    items = bench.items()
    vectors = np.random.default_rng(0).standard_normal((len(items), lm.d)).astype(np.float32)
    common = Intervention("vector", {1: vectors[0]}, 1.5)
    table = bench.score(lm, items, [Intervention("random", {1: vectors}, 1.5), BASE, common]).to_pylist()
    assert [row["condition"] for row in table] == [c for c in ("random", "base", "vector") for _ in items]
    assert {(row["condition"], row["strength"], row["block"]) for row in table} == {
        ("random", 1.5, 1), ("base", 0.0, None), ("vector", 1.5, 1),
    }  # fmt: skip
    ids = lm.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    for i in (0, 3, len(items) - 1):
        offset = 1.5 * torch.tensor(vectors[i])
        everyone = bench.score(lm, items, [Intervention("v", {1: vectors[i]}, 1.5)]).to_pylist()
        assert table[i]["nll"] == pytest.approx(everyone[i]["nll"], rel=1e-5)
        hook = lm.blocks[1].register_forward_hook(lambda _m, _a, out, offset=offset: out + offset)
        expected = by_recipe(lm, ids, 48, 20, [0])
        hook.remove()
        assert sum(row["nll"] for row in everyone) == pytest.approx(expected[0], rel=1e-5)
    steered = table[2 * len(items) :]
    assert steered[0]["nll"] == pytest.approx(table[0]["nll"], rel=1e-5)


def test_an_instruction_stands_before_every_window(tmp_path):
    lm = tiny_lm()
    bench = load(tmp_path, window=40, stride=16)
    items = [replace(item, prompt="Be happy. ") for item in bench.items()]
    front = lm.tokenizer("Be happy. ")["input_ids"]
    ids = lm.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    rows = bench.score(lm, items, [BASE]).to_pylist()
    nll, count = by_recipe(lm, ids, 40, 16, front)
    assert sum(row["nll"] for row in rows) == pytest.approx(nll, rel=1e-5)
    assert sum(row["tokens"] for row in rows) == count == len(ids)
    long = [replace(item, prompt="the old man " * 20) for item in bench.items()]
    with pytest.raises(UserError, match="stride 16: a window of 40 tokens has room for"):
        bench.score(lm, long, [BASE])


def test_only_the_first_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "PASSAGE", 100)
    lm = tiny_lm()
    bench = load(tmp_path, window=32, stride=16, limit=50)
    assert len(bench.text) == 800
    rows = bench.score(lm, bench.items(), [BASE]).to_pylist()
    ids = lm.tokenizer(TEXT, add_special_tokens=False)["input_ids"][:50]
    nll, count = by_recipe(lm, ids, 32, 16, [0])
    assert sum(row["nll"] for row in rows) == pytest.approx(nll, rel=1e-5)
    assert sum(row["tokens"] for row in rows) == count == 50
    assert rows[-1]["tokens"] == 0
    summary = bench.summarise(pa.Table.from_pylist(rows))
    assert summary["conditions"][0]["metrics"]["perplexity"]["value"] == pytest.approx(math.exp(nll / 50))


def test_a_tokenizer_without_offsets_gets_the_passages_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "PASSAGE", 100)
    lm = wrap_model(tiny_model("llama", vocab=400), ByT5Tokenizer())
    bench = load(tmp_path, window=64, stride=32)
    rows = bench.score(lm, bench.items(), [BASE]).to_pylist()
    ids = [byte + 3 for byte in TEXT.encode()]
    nll, count = by_recipe(lm, ids, 64, 32, [])
    assert sum(row["nll"] for row in rows) == pytest.approx(nll, rel=1e-5)
    assert sum(row["tokens"] for row in rows) == count


# --- items ---


def test_passages_are_the_text_cut_at_line_breaks(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "PASSAGE", 40)
    text = "one line\nanother line that is longer\n\n" + "word " * 20 + "x" * 100 + "\nend"
    bench = load(tmp_path, text)
    cuts = [*bench.starts, len(text)]
    parts = [text[a:b] for a, b in pairwise(cuts)]
    assert "".join(parts) == text
    assert max(map(len, parts)) <= 40
    assert parts[0] == "one line\nanother line that is longer\n\n"
    assert parts[1] == "word " * 8
    assert "x" * 40 in parts
    assert bench.items()[0].scenario == "another line that is longer"
    assert len({item.id for item in bench.items()}) == len(parts)
    assert all(item.concept == "" and item.prompt == "" for item in bench.items())


def test_bad_settings_and_texts_are_named(tmp_path):
    with pytest.raises(UserError, match="expected a text, found none"):
        load(tmp_path, " \n")
    (tmp_path / "bad.txt").write_bytes(b"abc \xff")
    with pytest.raises(UserError, match=r"bad.txt: expected UTF-8, found another byte at 4"):
        PerplexityBenchmark.load(PerplexityEvaluation(texts=str(tmp_path / "bad.txt")))
    with pytest.raises(UserError, match="stride 5: expected at most the window, 4"):
        load(tmp_path, window=4, stride=5)
    bench = load(tmp_path, window=200)
    with pytest.raises(UserError, match="window 200: the model's context holds 128"):
        bench.score(tiny_lm(), bench.items(), [BASE])


def test_without_texts_wikitext_comes_from_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"Salesforce/wikitext.*not in the local cache"):
        PerplexityBenchmark.load(PerplexityEvaluation())
    commit = "b08601e04326c79dfdd32d625aee71d232d685c3"
    folder = tmp_path / "datasets--Salesforce--wikitext" / "snapshots" / commit / "wikitext-2-raw-v1"
    folder.mkdir(parents=True)
    pq.write_table(
        pa.table({"text": ["", " = Title = \n", " A line . \n"]}), folder / "test-00000-of-00001.parquet"
    )
    assert PerplexityBenchmark.load(PerplexityEvaluation()).text == "\n\n = Title = \n\n\n A line . \n"


# --- summing up ---


def test_summary_by_hand(tmp_path):
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 200, 25)
    tokens[7] = 0
    data = {key: rng.uniform(2, 4, 25) * tokens for key in (("base", 0.0), ("vector", 1.0), ("random", 1.0))}
    rows = [
        {
            "item": f"passage/{i:05d}", "concept": "honesty", "condition": condition, "strength": strength,
            "nll": float(nll[i]), "tokens": int(tokens[i]), "window": 64, "stride": 32,
        }
        for (condition, strength), nll in data.items()
        for i in range(25)
    ]  # fmt: skip
    summary = load(tmp_path).summarise(pa.Table.from_pylist(rows))
    assert summary["reference"] == "vector"
    assert summary["notes"] == [
        f"windows of 64 tokens, 32 apart; {tokens.sum()} tokens of the text are scored, in 24 passages"
    ]
    kept = tokens > 0
    for entry in summary["conditions"]:
        nll = data[entry["condition"], entry["strength"]]
        perplexity = entry["metrics"]["perplexity"]
        assert perplexity["value"] == pytest.approx(math.exp(nll.sum() / tokens.sum()))
        assert perplexity["n"] == tokens.sum()
        low, high = ratio_interval(nll[kept], tokens[kept])
        assert (perplexity["low"], perplexity["high"]) == (
            pytest.approx(math.exp(low)),
            pytest.approx(math.exp(high)),
        )
        assert entry["metrics"]["honesty/perplexity"] == perplexity
        if entry["condition"] != "base":
            assert 0 < entry["p_vs_base"]["perplexity"] <= 1


def test_the_perplexity_of_a_ruined_model_is_a_number():
    """Of 1,000 nats a token, whose exponential is none."""
    (metric,) = PerplexityBenchmark.metrics
    ruined, lost = (metric.estimate(np.array([[n, 10.0]] * 2))["value"] or 0.0 for n in (1e4, 6900.0))
    assert math.inf > ruined > lost == pytest.approx(math.exp(690))


def test_a_real_text_and_model(shared):
    """A trained model on WikiText-2: the loop of the documentation, steered and not."""
    lm = load_model(str(shared / "models/stories3m"), dtype="float32")
    bench = PerplexityBenchmark.load(
        PerplexityEvaluation(
            texts=str(shared / "data/perplexity/wikitext2_test.txt"), limit=1500, window=256, stride=128
        )
    )
    vector = 2 * np.ones(lm.d, np.float32)
    items = bench.items()
    ids = lm.tokenizer(bench.text, add_special_tokens=False)["input_ids"][:1500]
    table = bench.score(lm, items, [BASE, Intervention("vector", {3: vector}, 1.0)])
    entries = bench.summarise(table)["conditions"]
    plain = by_recipe(lm, ids, 256, 128, lm.front)
    hook = lm.blocks[3].register_forward_hook(lambda _m, _a, out: out + torch.tensor(vector))
    steered = by_recipe(lm, ids, 256, 128, lm.front)
    hook.remove()
    for entry, (nll, count) in zip(entries, (plain, steered), strict=True):
        assert entry["metrics"]["perplexity"]["value"] == pytest.approx(math.exp(nll / count), rel=1e-4)
        assert entry["metrics"]["perplexity"]["n"] == count == 1500
