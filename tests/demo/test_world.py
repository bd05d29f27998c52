"""The demo's texts keep their promises, and its bundled models know the world they live in."""

import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from contrans_dist.demo import EMOTIONS, MODELS, TEMPLATE, world, write_texts
from contrans_dist.demo.people import ADJECTIVES, HE, NAMES, NOUNS, SHE, YOU, Person

NAMED = [Person(name, person.object, person.possessive) for name, person in NAMES.items()]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """Every set as a user gets it, read back from the files."""
    paths = write_texts(tmp_path_factory.mktemp("texts"), training_texts=8_000)
    return {
        name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for name, path in paths.items()
    }


def letters(text: str) -> str:
    """Text without case, so that an event at the start of a sentence is found too."""
    return text.lower()


def test_files_and_columns(texts: dict[str, list[dict[str, str]]], tmp_path: Path) -> None:
    assert set(texts) == {"corpus", "contrast", "validation", "evaluation", "training"}
    assert set(write_texts(tmp_path)) == {"corpus", "contrast", "validation", "evaluation"}
    assert all(set(text) == {"text"} for text in texts["corpus"])
    for name, least in (("contrast", 40), ("validation", 20), ("evaluation", 40)):
        for emotion in EMOTIONS:
            assert sum(text["concept"] == emotion for text in texts[name]) >= least
        assert len({text["text"] for text in texts[name]}) == len(texts[name])


def test_no_held_out_event_in_any_other_text(texts: dict[str, list[dict[str, str]]]) -> None:
    """Searched as a substring, with the words of every person the event can happen to."""
    seen = {
        name: letters("\n".join(text["text"] for text in texts[name]))
        for name in ("training", "contrast", "corpus", "validation")
    }
    held_out = [event for pool in world.events("evaluation").values() for event in pool]
    assert len(held_out) > 400
    for event in held_out:
        for person in (YOU, SHE, HE, *(NAMED if "{I}" in event else ())):
            wanted = letters(world.render(event, person))
            assert not any(wanted in text for text in seen.values()), wanted


def test_the_search_finds_training_events(texts: dict[str, list[dict[str, str]]]) -> None:
    """The substring search above can fail: the same search finds events that were trained on."""
    seen = letters("\n".join(text["text"] for text in texts["training"]))
    events = [event for pool in world.events("training").values() for event in pool]
    seen_before = [letters(world.render(event, YOU)) in seen for event in events]
    assert sum(seen_before) > 0.7 * len(seen_before)


def test_pools_share_no_event_and_no_scenario(texts: dict[str, list[dict[str, str]]]) -> None:
    pools = [
        {event for some in world.events(pool).values() for event in some}
        for pool in ("training", "validation", "evaluation")
    ]
    for one, other in itertools.combinations(pools, 2):
        assert not one & other
    training = "\n".join(text["text"] for text in texts["training"])
    for name in ("contrast", "validation", "evaluation"):
        assert not [text for text in texts[name] if text["text"] in training]
    scenarios = [{text["text"] for text in texts[name]} for name in ("contrast", "validation", "evaluation")]
    assert sum(map(len, scenarios)) == len(set.union(*scenarios))


def test_corpus_has_no_template(texts: dict[str, list[dict[str, str]]]) -> None:
    pieces = ["Scenario", "emotion", "above scenario", "\n"]
    assert not [text for text in texts["corpus"] if any(piece in text["text"] for piece in pieces)]
    assert not [text for text in texts["corpus"] if re.search(r"\b[Yy]our?\b", text["text"])]


def test_scenarios_name_no_emotion(texts: dict[str, list[dict[str, str]]]) -> None:
    words = {word for some in (*NOUNS.values(), *ADJECTIVES.values()) for word in some}
    for name in ("contrast", "validation", "evaluation"):
        for text in texts[name]:
            assert not words & set(re.findall(r"[a-z]+", text["text"].lower())), text


def test_same_seed_same_texts_in_another_process(tmp_path: Path) -> None:
    here = write_texts(tmp_path / "here", seed=5)
    there = tmp_path / "there"
    code = f"from contrans_dist.demo import *; from pathlib import Path; write_texts(Path({str(there)!r}), 5)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONHASHSEED": "77"}, cwd=Path.cwd())
    for path in here.values():
        assert path.read_bytes() == (there / path.name).read_bytes()
    assert write_texts(tmp_path / "other", seed=6)["corpus"].read_bytes() != here["corpus"].read_bytes()


def test_import_is_cheap() -> None:
    code = "import sys, contrans_dist.demo; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path.cwd())


def test_render_and_expand() -> None:
    assert world.expand("a [b|c] d [e|f]") == ["a b d e", "a b d f", "a c d e", "a c d f"]
    assert world.render("{I} {was} at {my} desk", YOU) == "you were at your desk"
    assert world.render("{I} {was} at {my} desk", SHE) == "she was at her desk"
    assert world.scenario("{I} slept", YOU, random.Random(0)).endswith(".")
    with pytest.raises(ValueError, match="no pool 'test'"):
        world.events("test")


def test_models_are_small() -> None:
    assert sum(file.stat().st_size for file in MODELS["source"].parent.rglob("*") if file.is_file()) <= 24e6


@pytest.mark.parametrize(
    ("which", "architecture", "least"), [("source", "gpt_neox", 0.7), ("target", "llama", 0.85)]
)
def test_model_names_the_emotion_of_unseen_scenarios(
    texts: dict[str, list[dict[str, str]]], which: str, architecture: str, least: float
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS[which])
    model = AutoModelForCausalLM.from_pretrained(MODELS[which]).eval()
    assert model.config.model_type == architecture
    assert model.dtype == torch.float32
    assert None not in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    any_text = "Zoë: 100 % naïve – 漢字 🙂"
    assert tokenizer.decode(tokenizer(any_text)["input_ids"], skip_special_tokens=True) == any_text

    some = texts["evaluation"][::4]
    prompts = [TEMPLATE.format(text=text["text"]) for text in some]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    first = {e: tokenizer(f"{prompts[0]} {e}")["input_ids"][len(ids[0])] for e in EMOTIONS}
    assert len(set(first.values())) == len(EMOTIONS)
    with torch.inference_mode():
        best = [int(model(torch.tensor([row])).logits[0, -1].argmax()) for row in ids]
    hits = [token == first[text["concept"]] for token, text in zip(best, some, strict=True)]
    assert sum(hits) / len(hits) >= least
