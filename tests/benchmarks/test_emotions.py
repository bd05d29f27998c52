"""The emotion benchmark against the authors' loop and formulas written out here, and their own files."""

import json
import math
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch

from contrans_dist.benchmarks import Benchmark
from contrans_dist.benchmarks.emotions import EmotionBenchmark, EmotionEvaluation
from contrans_dist.benchmarks.scenarios import Item, build_items, official_items, read_scenarios
from contrans_dist.engine.scoring import BASE, Intervention, cues
from contrans_dist.errors import RunError, UserError
from contrans_dist.models import load_model, wrap_model
from contrans_dist.store.location import Location
from tests.tiny import tiny_model, tiny_tokenizer

CONCEPTS = ["joy", "fear", "anger"]
SCENARIOS = [{"text": f"{c} event {i}", "concept": c, "name": f"N{i}"} for c in CONCEPTS for i in range(8)]
SHOTS = [{"text": f"{c} example {i}", "concept": c, "name": "S"} for c in CONCEPTS for i in range(4)]


def tiny_lm(**tokenizer):
    return wrap_model(tiny_model("llama"), tiny_tokenizer(**tokenizer))


def concept_of(text: str) -> str:
    return text.split()[0]


# --- items ---


def test_each_concept_gets_its_own_scenarios_and_as_many_of_the_others_in_equal_parts():
    items = build_items(SCENARIOS, CONCEPTS, per_concept=6)
    assert len({item.id for item in items}) == len(items) == 36
    for concept in CONCEPTS:
        mine = [item for item in items if item.concept == concept]
        positive = [concept_of(item.scenario) for item in mine if item.kind == "positive"]
        negative = Counter(concept_of(item.scenario) for item in mine if item.kind == "negative")
        assert positive == [concept] * 6
        assert negative == {c: 3 for c in CONCEPTS if c != concept}
        assert len({item.scenario for item in mine}) == 12
    assert items[0].prompt == f"Scenario: {items[0].scenario}\nThe emotion of the above scenario is"


def test_the_draw_depends_on_the_seed_alone():
    def draw(seed, n):
        return build_items(SCENARIOS, CONCEPTS, per_concept=n, seed=seed)

    assert draw(1, 6) == draw(1, 6) != draw(2, 6)
    assert {i.id: i.scenario for i in draw(1, 3)}.items() <= {i.id: i.scenario for i in draw(1, 6)}.items()


def test_negatives_make_do_when_a_concept_runs_out():
    few = [s for s in SCENARIOS if s["concept"] != "fear"] + SCENARIOS[8:10]
    items = [i for i in build_items(few, CONCEPTS) if i.concept == "joy" and i.kind == "negative"]
    assert Counter(concept_of(i.scenario) for i in items) == {"fear": 2, "anger": 6}


def test_default_examples_carry_their_right_labels_and_are_not_scored():
    items = build_items(
        SCENARIOS, CONCEPTS, shots=5, shot_scenarios=SHOTS + SCENARIOS, labels={"joy": "glad"}
    )
    prefix = items[0].prompt.removesuffix(
        f"Scenario: {items[0].scenario}\nThe emotion of the above scenario is"
    )
    examples = re.findall(r"Scenario: (.*)\nThe emotion of the above scenario is (.*)\.\n", prefix)
    assert len(examples) == 5
    assert [{"glad": "joy"}.get(label, label) for _, label in examples] == [
        concept_of(text) for text, _ in examples
    ]
    assert {text for text, _ in examples}.isdisjoint(item.scenario for item in items)
    assert set(Counter(label for _, label in examples).values()) == {1, 2}


def test_examples_need_scenarios_of_their_own():
    with pytest.raises(UserError, match="may be taken from"):
        build_items(SCENARIOS, CONCEPTS, shots=3)
    with pytest.raises(UserError, match="not enough example scenarios"):
        build_items(SCENARIOS, CONCEPTS, shots=9, shot_scenarios=SHOTS[:1])


def test_template_takes_any_column_and_names_one_that_is_missing():
    items = build_items(SCENARIOS, CONCEPTS, template="{text} {name} felt")
    record = next(s for s in SCENARIOS if s["text"] == items[0].scenario)
    assert items[0].prompt == f"{record['text']} {record['name']} felt"
    with pytest.raises(UserError, match="no column 'who'"):
        build_items(SCENARIOS, CONCEPTS, template="{text} {who} felt")
    with pytest.raises(UserError, match=r"no scenarios of concept 'awe'.*anger, fear, joy"):
        build_items(SCENARIOS, [*CONCEPTS, "awe"])


def shape(prompt: str) -> str:
    """A prompt with its scenarios blanked."""
    return re.sub(r"Scenario: .*", "Scenario: ...", prompt)


def test_paper_prefix_has_the_shape_of_the_authors_own(shared):
    folder = Location.parse(shared / "data/emotions/contrans")
    official = next(item for item in official_items(folder, 1) if item.concept == "fear")
    order = ["happiness", "sadness", "anger", "fear", "disgust", "surprise"]
    scenarios = read_scenarios(shared / "data/emotions/repe")
    items = build_items(scenarios, order, protocol="paper", shots=6, per_concept=3)
    assert shape(items[0].prompt) == shape(official.prompt)
    truth = {s["text"]: s["concept"] for s in scenarios}
    shots = re.findall(r"Scenario: (.*)\n.* is (\w+)\.\n", items[0].prompt)
    assert [label for _, label in shots] == sorted(order)
    assert all(truth[text] != label for text, label in shots)
    assert {text for text, _ in shots}.isdisjoint(item.scenario for item in items)


def load(texts: object, **more: object) -> EmotionBenchmark:
    return EmotionBenchmark.load(EmotionEvaluation(texts=str(texts), **more))  # type: ignore[arg-type]


def made(items: list[Item], words: dict[str, str], protocol: str = "default") -> EmotionBenchmark:
    settings = EmotionEvaluation(texts="given", protocol=protocol)  # type: ignore[arg-type]
    return EmotionBenchmark(settings, items, words)


def test_the_authors_files_are_used_as_they_are(shared):
    folder = shared / "data/emotions/contrans"
    bench = load(folder, protocol="paper")
    raw = json.loads((folder / "eval_anger.json").read_text())
    mine = [item for item in bench.items() if item.concept == "anger"]
    assert [i.prompt for i in mine if i.kind == "positive"] == raw["pos"]
    assert [i.prompt for i in mine if i.kind == "negative"] == raw["neg"]
    truth = {s["text"]: s["concept"] for s in read_scenarios(shared / "data/emotions/repe")}
    assert all((truth[i.scenario] == i.concept) == (i.kind == "positive") for i in bench.items())
    assert len(bench.items()) == 6 * 400
    with pytest.raises(UserError, match="do not apply"):
        load(folder, protocol="paper", template="{text}")
    held = load(folder, per_concept=5)  # default: their scenarios, asked without wrong examples
    assert held.items()[0].prompt.count("Scenario: ") == 1


def test_scenarios_are_read_from_jsonl_and_bad_data_is_named(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(s) + "\n" for s in SCENARIOS))
    bench = load(path, labels={"joy": "glad"}, template="{text} {name}\\nfelt")
    assert bench.labels == {"joy": "glad", "fear": "fear", "anger": "anger"}
    assert bench.items()[0].prompt.endswith("\nfelt")
    with pytest.raises(UserError, match="no concept 'awe'"):
        load(path, labels={"awe": "awe"})
    (tmp_path / "bare.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"bare\.jsonl.*'concept'"):
        load(tmp_path / "bare.jsonl")


# --- scoring ---


def authors_loop(lm, prompts, words, vectors, strength):
    """One prompt at a time, whole forward: the arg-max token and each word's logit, as the authors do it."""
    ids = [lm.tokenizer.encode(word)[1] for word in words]  # after BOS, the first sub-token with its space
    handles = []
    for k, v in vectors.items():
        offset = strength * torch.tensor(v)
        handles.append(lm.blocks[k].register_forward_hook(lambda _m, _a, out, offset=offset: out + offset))
    best, logits = [], []
    with torch.no_grad():
        for prompt in prompts:
            last = lm.model(**lm.tokenizer(prompt, return_tensors="pt")).logits[0, -1]
            best.append(int(last.argmax()))
            logits.append(last[ids].numpy())
    for handle in handles:
        handle.remove()
    return ids, np.array(best), np.array(logits)


def test_scores_equal_the_authors_loop_on_a_trained_model(shared):
    lm = load_model(str(shared / "models/stories3m"), dtype="float32")
    path = shared / "data/emotions/repe"
    words = {"happiness": "happy", "sadness": "sad", "fear": "scared", "anger": "angry"}
    template = "{text} You felt very"
    few = build_items(read_scenarios(str(path)), list(words), template=template, per_concept=12, labels=words)
    bench = made(few, words)
    items = [item for item in bench.items() if item.concept == "fear"]
    token = lm.tokenizer.encode("scared")[1]
    direction = lm.model.get_output_embeddings().weight[token].detach().numpy()
    vector = {4: (12 * direction / np.linalg.norm(direction)).astype(np.float32)}
    sweep = [BASE, *(Intervention("vector", vector, a) for a in (1.0, 2.0, 4.0))]
    table = bench.score(lm, items, sweep)
    rates = []
    for intervention in sweep:
        mine = table.filter(pa.compute.equal(table["strength"], intervention.strength))
        ids, best, logits = authors_loop(
            lm, [i.prompt for i in items], words.values(), intervention.vectors, intervention.strength
        )
        assert mine["item"].to_pylist() == [i.id for i in items]
        assert mine["argmax"].to_pylist() == best.tolist()
        assert mine["token_hit"].to_pylist() == (best == ids[2]).tolist()
        assert mine["logit_hit"].to_pylist() == (logits.argmax(axis=1) == 2).tolist()
        ours = np.array([mine[f"logits.{c}"].to_numpy() for c in words]).T
        np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-4)
        rates.append(float(np.mean(mine["token_hit"].to_pylist())))
    assert rates[0] < 0.5 < rates[-1]  # steering towards the word's own row does name it
    assert set(table["block"].to_pylist()) == {None, 4}


class SmallBatches(EmotionBenchmark):
    batch_tokens = 40


def random_logits_bench(protocol="default"):
    scenarios = [
        {"text": f"The {c} {i} was", "concept": c} for c in ("happy", "sad", "dog") for i in range(5)
    ]
    items = build_items(scenarios, ["happy", "sad", "dog"], template="{text} the")
    settings = EmotionEvaluation(texts="given", protocol=protocol)
    return SmallBatches(settings, items, {"happy": "happy", "sad": "sad", "dog": "dog"})


def test_an_item_longer_than_the_context_is_named():
    scenarios = [{"text": f"The {c} was " + "very " * 200, "concept": c} for c in ("happy", "sad")]
    bench = made(build_items(scenarios, ["happy", "sad"]), {"happy": "happy", "sad": "sad"})
    with pytest.raises(UserError, match=r"item happy/positive/0000 needs \d+ tokens.* 128"):
        bench.score(tiny_lm(), bench.items(), [BASE])


def test_rows_are_complete_and_in_order():
    bench, lm = random_logits_bench(), tiny_lm()
    assert isinstance(bench, Benchmark)
    items = bench.items()[:7]
    vector = {1: np.ones(32, np.float32), 3: np.ones(32, np.float32)}
    table = bench.score(lm, items, [BASE, Intervention("random", vector, 0.5)])
    alone = bench.score(lm, items[3:4], [Intervention("random", vector, 0.5)])
    none = bench.score(lm, [], [BASE])
    assert table["item"].to_pylist() == [i.id for i in items] * 2
    assert table["condition"].to_pylist() == ["base"] * 7 + ["random"] * 7
    assert table["block"].to_pylist() == [None] * 7 + [1] * 7
    assert table.schema == alone.schema == none.schema
    assert none.num_rows == 0
    assert alone["logits.sad"][0].as_py() == pytest.approx(table["logits.sad"][10].as_py(), abs=1e-4)
    assert all(p <= 0 for p in table["logprob"].to_pylist())


def test_logits_that_overflow_are_a_failure_and_no_score():
    """In float16, whose largest number is 65,504."""
    bench = random_logits_bench()
    lm = wrap_model(tiny_model("llama").half(), tiny_tokenizer())
    vector = {1: np.ones(32, np.float32), 3: np.ones(32, np.float32)}
    wanted = "condition vector at strength 60000: the model's logits overflow"
    with pytest.raises(RunError, match=wanted):
        bench.score(lm, bench.items()[:2], [BASE, Intervention("vector", vector, 6e4)])


def judged(logits, argmax, tokens, place, protocol):
    """Hits for one item and one intervention, through the benchmark's own judging."""
    from contrans_dist.benchmarks.emotions import _judged
    from contrans_dist.engine.scoring import NextToken

    values = np.array([[logits]], np.float32)
    got = _judged(
        NextToken(np.array([[argmax]]), values, values), np.array([tokens]), np.array([place]), protocol
    )
    return bool(got["token_hit"][0][0]), bool(got["logit_hit"][0][0])


@pytest.mark.parametrize(
    ("logits", "argmax", "tokens", "place", "protocol", "expected"),
    [
        ([3, 2, 1], 99, [7, 8, 9], 0, "default", (False, True)),
        ([3, 2, 1], 99, [7, 8, 9], 1, "default", (False, False)),
        ([3, 2, 1], 7, [7, 8, 9], 0, "default", (True, True)),
        ([3, 3, 1], 99, [7, 8, 9], 0, "default", (False, False)),  # a tie is nobody's
        ([3, 3, 1], 99, [7, 8, 9], 1, "default", (False, False)),
        ([3, 3, 1], 7, [7, 8, 9], 0, "default", (True, False)),
        ([3, 3, 1], 7, [7, 8, 9], 0, "paper", (True, True)),  # a Token hit counts as a Logit hit
        (
            [3, 3, 1],
            7,
            [7, 7, 9],
            1,
            "default",
            (True, True),
        ),  # the same sub-token: a hit for both, and said so
    ],
)
def test_hits_by_hand(logits, argmax, tokens, place, protocol, expected):
    assert judged(logits, argmax, tokens, place, protocol) == expected


def test_two_words_with_the_same_first_sub_token_are_reported():
    lm = tiny_lm()
    words = {"glad": "happy", "merry": "happyish", "sad": "sad"}
    first = [
        lm.tokenizer("was " + w)["input_ids"][len(lm.tokenizer("was")["input_ids"])] for w in words.values()
    ]
    assert first[0] == first[1] != first[2]
    assert list(cues(lm, ["was"], list(words.values()))[0].tokens) == first
    scenarios = [{"text": f"{c} {i} was", "concept": c} for c in words for i in range(2)]
    bench = made(build_items(scenarios, list(words), template="{text}"), words)
    tables = [bench.score(lm, [i for i in bench.items() if i.concept == c], [BASE]) for c in words]
    summary = bench.summarise(pa.concat_tables(tables))
    assert summary["shared_first_tokens"] == [["glad", "merry"]]
    assert "glad and merry" in summary["notes"][0]


# --- summing up ---


def wilson_by_hand(hits: int, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    p = hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def mcnemar_by_hand(a: list[bool], b: list[bool]) -> float:
    only_a, only_b = (
        sum(x and not y for x, y in zip(a, b, strict=True)),
        sum(y and not x for x, y in zip(a, b, strict=True)),
    )
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1)) / 2**n) if n else 1.0


def rows(condition, strength, hits: dict[tuple[str, str], list[bool]]) -> list[dict]:
    return [
        {
            "item": f"{concept}/{kind}/{i}", "concept": concept, "kind": kind, "condition": condition,
            "strength": strength, "token_hit": hit, "logit_hit": not hit, "shared_with": "",
        }
        for (concept, kind), values in hits.items()
        for i, hit in enumerate(values)
    ]  # fmt: skip


def test_summary_by_hand():
    rng = np.random.default_rng(0)

    def hits(p):
        return {
            (c, k): (rng.random(20) < p).tolist() for c in ("fear", "joy") for k in ("negative", "positive")
        }

    data = {
        ("base", 0.0): hits(0.1),
        ("vector", 1.0): hits(0.6),
        ("vector", 2.0): hits(0.8),
        ("random", 1.0): hits(0.2),
    }
    all_rows = [row for (c, a), h in data.items() for row in rows(c, a, h)]
    table = pa.Table.from_pylist(
        [all_rows[i] for i in rng.permutation(len(all_rows))]
    )  # order must not matter
    entries = {
        (e["condition"], e["strength"]): e for e in random_logits_bench().summarise(table)["conditions"]
    }
    assert next(iter(entries)) == ("base", 0.0)
    assert set(entries) == set(data)
    for key, entry in entries.items():
        assert set(entry["metrics"]) == {
            f"{prefix}{acc}_acc_{kind}"
            for prefix in ("", "fear/", "joy/")
            for acc in ("token", "logit")
            for kind in ("negative", "positive")
        }
        both = data[key][("fear", "negative")] + data[key][("joy", "negative")]
        for name, values in {
            "token_acc_negative": both,
            "fear/token_acc_positive": data[key][("fear", "positive")],
            "logit_acc_negative": [not x for x in both],
        }.items():
            got = entry["metrics"][name]
            assert (got["value"], got["n"]) == (np.mean(values), len(values))
            assert (got["low"], got["high"]) == pytest.approx(wilson_by_hand(sum(values), len(values)))

    def negatives(key):
        return data[key][("fear", "negative")] + data[key][("joy", "negative")]

    random, base, vector = ("random", 1.0), ("base", 0.0), ("vector", 1.0)
    for key in (vector, ("vector", 2.0)):  # a single row of `random` is compared with both
        assert set(entries[key]["p_vs"]) == {"random"}
        assert entries[key]["p_vs"]["random"]["token_acc_negative"] == pytest.approx(
            mcnemar_by_hand(negatives(random), negatives(key))
        )
    assert entries[vector]["p_vs_base"]["token_acc_negative"] == pytest.approx(
        mcnemar_by_hand(negatives(vector), negatives(base))
    )
    assert entries[base]["p_vs_base"] == {}
    assert {key for key, entry in entries.items() if "p_vs" in entry} == {vector, ("vector", 2.0)}


def test_a_metric_without_items_is_left_out():
    table = pa.Table.from_pylist(rows("base", 0.0, {("fear", "negative"): [True, False]}))
    metrics = random_logits_bench().summarise(table)["conditions"][0]["metrics"]
    assert set(metrics) == {
        p + m for p in ("", "fear/") for m in ("token_acc_negative", "logit_acc_negative")
    }
