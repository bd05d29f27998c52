"""From text to token ids and back: what is put around a text, which day it is, and what follows a prompt."""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from contrans_dist.benchmarks.behaviours import BehaviourEvaluation
from contrans_dist.benchmarks.lm_eval.tokens import encode_pair, encode_prompt
from contrans_dist.cli import main
from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings
from contrans_dist.data.texts import text_table
from contrans_dist.engine.capture import capture, capture_ids
from contrans_dist.engine.scoring import generate, next_token
from contrans_dist.engine.scoring.interventions import BASE
from contrans_dist.errors import UserError
from contrans_dist.evaluation.driver import evaluate
from contrans_dist.harvest.driver import harvest
from contrans_dist.mapping.aligned_rows import join
from contrans_dist.models import encode, encode_many, wrap_model
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.results import plain
from tests.tiny import CONTEXT, CORPUS, save_tiny, tiny_model, tiny_tokenizer
from tests.truth import read_all

ONE = ClusterSettings(actors=1, cpus_per_actor=1)
TEXTS = ["She felt sad", "One day a bird asked the old man", "home", "Once upon a time there was"]
EOS = 1


def rows_of(folder: Path, block: int) -> np.ndarray:
    return np.stack(read_all(folder)[f"block_{block:03d}"].to_list())


def metaspace() -> PreTrainedTokenizerFast:
    """As Llama 2's: words carry the space before them, a decoded text loses its first one, unknown characters
    are bytes."""
    words = ["▁there", "▁was", "▁a", "▁little", "▁Once", "▁girl", "▁sad", "▁", "Once", "é"]
    letters = [chr(c) for c in range(97, 123)] + ["."]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words, *letters]
    scores = [(piece, -1.0 if piece in words else -10.0) for piece in pieces]
    backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def command(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    """`contrans ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["contrans", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code


def writing(lm: Any, monkeypatch: pytest.MonkeyPatch, new: list[int]) -> Any:
    """The model made to write these tokens after any prompt."""
    head = lm.model.lm_head
    real = head.forward
    passes: list[int] = []

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.full_like(real(hidden), -5.0)
        logits[..., new[min(len(passes), len(new) - 1)]] = 5.0
        passes.append(1)
        return logits

    monkeypatch.setattr(head, "forward", forward)
    return passes


# -- what a tokenizer puts around a text --------------------------------------------------------------


def bert_like() -> PreTrainedTokenizerFast:
    """Chinese GPT-2s have one: `[CLS]` before a text, `[SEP]` behind it, words in pieces."""
    names = ["[UNK]", "[CLS]", "[SEP]", "she", "felt", "sad", "##ly", "home", "one", "day"]
    backend = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]"
    )


@pytest.mark.parametrize("position", ["last", "mean", -2, 1])
def test_rows_are_those_of_the_text_whatever_the_tokenizer_adds_behind_it(position: Any) -> None:
    plain = capture(wrap_model(tiny_model(), tiny_tokenizer()), TEXTS, position=position)
    ended = wrap_model(tiny_model(), tiny_tokenizer(eos=True))
    assert ended.tokenizer(TEXTS[0])["input_ids"][-1] == EOS
    rows = capture(ended, TEXTS, position=position)
    np.testing.assert_array_equal(rows.token_ids, plain.token_ids)
    np.testing.assert_array_equal(rows.n_tokens, plain.n_tokens)
    for block in plain:
        np.testing.assert_allclose(rows[block], plain[block], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tokenizer", "front", "tail"), [
    (ByT5Tokenizer(), [], 1),  # in Python, one token a byte
    (bert_like(), [1], 2),
    (tiny_tokenizer(eos=True), [0], EOS),
    (tiny_tokenizer(bos=False, eos=True), [], EOS),
])  # fmt: skip
def test_prompts_end_with_a_token_of_their_own(tokenizer: Any, front: list[int], tail: int) -> None:
    lm = wrap_model(tiny_model(vocab=400), tokenizer)
    text = "she felt sad"
    whole = tokenizer(text)["input_ids"]
    assert whole[-1] == tail
    assert encode(lm, text) == whole[:-1]
    assert lm.front == front
    assert encode_prompt(lm, text, 5) == whole[:-1]
    context, rest = encode_pair(lm, "she felt", " sad")
    assert context + rest == whole[:-1]
    assert context == tokenizer("she felt")["input_ids"][:-1]


def test_a_long_text_keeps_its_front_and_its_own_end() -> None:
    lm = wrap_model(tiny_model(), tiny_tokenizer(eos=True))
    long = " ".join(CORPUS)
    ids = lm.tokenizer(long, add_special_tokens=False)["input_ids"]
    rows = capture(lm, [long], [2])
    alone = capture_ids(lm, [[0, *ids[-(CONTEXT - 1) :]]], [2])
    assert rows.token_ids[0] == ids[-1] == alone.token_ids[0]
    np.testing.assert_allclose(rows[2], alone[2], rtol=1e-5, atol=1e-5)


def test_a_command_continues_the_prompt_and_not_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(tmp_path / "model", eos=True)
    command(monkeypatch, "generate", "--model", folder, "--max-new-tokens", 6, "--json", *TEXTS[:2])
    said = json.loads(capsys.readouterr().out)["texts"]
    lm = wrap_model(tiny_model(), tiny_tokenizer())
    expected = generate(lm, [lm.tokenizer(text)["input_ids"] for text in TEXTS[:2]], max_new_tokens=6)
    assert [row["base"] for row in said] == expected[0]


@pytest.mark.parametrize("chat", [False, True])
def test_a_manifest_says_what_was_put_around_the_texts(in_process: None, tmp_path: Path, chat: bool) -> None:
    folder = save_tiny(tmp_path / "model", n_blocks=2, d=16, eos=True, chat=True)
    made = harvest(
        ModelSettings(id=str(folder)), text_table({"text": TEXTS}), str(tmp_path / "set"),
        CaptureSettings(chat=chat), ONE,
    )  # fmt: skip
    expected = (
        {"front": "<s>[user] ", "back": "\n[assistant] ", "left_out": ""}
        if chat
        else {"front": "<s>", "back": "", "left_out": "</s>"}
    )
    assert made.manifest.special_tokens == expected
    lm = wrap_model(tiny_model(n_blocks=2, d=16), tiny_tokenizer(chat=True))
    rows = capture(lm, TEXTS, chat=chat)
    table = read_all(tmp_path / "set")
    assert table["token_id"].tolist() == rows.token_ids.tolist()
    for block in rows:
        np.testing.assert_allclose(rows_of(tmp_path / "set", block), rows[block], rtol=1e-5, atol=1e-5)


# -- which day it is ----------------------------------------------------------------------------------

ASKING = (
    "{{ bos_token }}[system] Today is {{ strftime_now('%B %d, %Y %H:%M') }}.\n"
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
GIVEN = (
    "{% if date_string is not defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}"
    "{% endif %}{% endif %}Today Date: {{ date_string }}\n{{ messages[0]['content'] }}\n"
)
CONSTANT = GIVEN.replace("{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
                         "{% else %}", "").replace("{% endif %}{% endif %}", "{% endif %}")  # fmt: skip


@pytest.mark.parametrize(
    ("template", "usual", "other"),
    [
        (ASKING, "July 26, 2024 00:00", "March 05, 2025 00:00"),
        (GIVEN, "26 Jul 2024", "05 Mar 2025"),
        (CONSTANT, "26 Jul 2024", "05 Mar 2025"),
    ],
)
def test_a_template_that_asks_is_told_the_same_day_every_day(template: str, usual: str, other: str) -> None:
    lm = wrap_model(tiny_model(), tiny_tokenizer(chat=template))
    assert usual in lm.tokenizer.decode(encode(lm, "home", chat=True))
    assert other in lm.tokenizer.decode(encode(lm, "home", chat=True, chat_date=date(2025, 3, 5)))


def test_another_process_on_another_day_renders_the_same(tmp_path: Path) -> None:
    tiny_tokenizer(chat=ASKING).save_pretrained(tmp_path)
    code = (
        "import sys, datetime, json\n"
        "class Later(datetime.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None): return cls(2031, 12, 24, 17, 5)\n"
        "datetime.datetime = Later\n"
        "from transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "turn = [{'role': 'user', 'content': 'home'}]\n"
        "assert '2031' in tokenizer.apply_chat_template(turn, tokenize=False)\n"
        "from contrans_dist.models.tokens import CHAT_DATE, chat_prompts\n"
        "print(json.dumps(chat_prompts(tokenizer, ['home'], CHAT_DATE)))\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    lm = wrap_model(tiny_model(), tiny_tokenizer(chat=ASKING))
    (text,) = json.loads(printed.stdout)
    assert lm.tokenizer(text, add_special_tokens=False)["input_ids"] == encode(lm, "home", chat=True)


def test_prompts_and_their_day_belong_to_a_harvest(in_process: None, tmp_path: Path) -> None:
    """The day is told, other prompts are another set, and sets of different days are not joined."""
    folder = save_tiny(tmp_path / "model", n_blocks=2, d=16, chat=ASKING)
    model, texts = ModelSettings(id=str(folder)), text_table({"text": TEXTS})

    def made(out: str, **capture: Any) -> ActivationSet:
        return harvest(model, texts, str(tmp_path / out), CaptureSettings(chat=True, **capture), ONE)

    usual = made("usual")
    assert usual.manifest.identity.chat_date == "2024-07-26"
    assert "July 26, 2024" in (usual.manifest.special_tokens or {})["front"]
    with pytest.raises(UserError, match=r"chat_date: found '2024-07-26', asked for '2025-03-05'; prompts: "):
        made("usual", chat_date="2025-03-05")
    later = made("later", chat_date="2025-03-05")
    assert later.manifest.identity.prompts != usual.manifest.identity.prompts
    assert not np.allclose(rows_of(tmp_path / "usual", 1), rows_of(tmp_path / "later", 1))
    with pytest.raises(UserError, match=r"usual has chat date 2024-07-26, \S*later 2025-03-05: .*-date"):
        join(usual, later, "default")
    join(usual, usual, "default")


def test_prompts_and_their_day_belong_to_an_evaluation(in_process: None, tmp_path: Path) -> None:
    from contrans_dist.evaluation.steering import Steering

    folder = save_tiny(tmp_path / "model", n_blocks=2, d=16, chat=ASKING)
    question = {
        "question": "Do you sleep?\n\nChoices:\n (A) Yes\n (B) No",
        "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)",
    }  # fmt: skip
    (tmp_path / "refusal").mkdir()
    (tmp_path / "refusal" / "test_dataset_ab.json").write_text(json.dumps([question]))

    def run(out: str, **given: Any) -> dict[str, Any]:
        settings = BehaviourEvaluation(
            texts=str(tmp_path / "refusal" / "test_dataset_ab.json"), conditions=(), strengths=(0.0,),
            chat=True, **given,
        )  # fmt: skip
        return plain(evaluate(ModelSettings(id=str(folder)), settings, Steering(), str(tmp_path / out), ONE))

    usual = run("usual")
    later = run("later", chat_date="2025-03-05")
    assert usual["identity"]["chat_date"] == "2024-07-26"
    assert usual["identity"]["prompts"] != later["identity"]["prompts"]
    assert usual["conditions"][0]["metrics"] != later["conditions"][0]["metrics"]
    with pytest.raises(UserError, match="another evaluation"):
        run("usual", chat_date="2025-03-05")


# -- what follows a prompt ----------------------------------------------------------------------------


def test_a_continuation_keeps_the_space_that_it_begins_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = wrap_model(tiny_model(vocab=310), metaspace())
    prompt = "there was a little"
    for text in ("Once a girl", "girl was sad", "é", "a"):
        new = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        with monkeypatch.context() as patch:
            writing(lm, patch, [*new, 2])
            assert generate(lm, [encode(lm, prompt)], max_new_tokens=9) == [[" " + text]]
    # At the very beginning a text has no space.
    with monkeypatch.context() as patch:
        writing(lm, patch, [*lm.tokenizer("Once", add_special_tokens=False)["input_ids"], 2])
        assert generate(lm, [[1]], max_new_tokens=9) == [["Once"]]


def test_a_character_in_two_halves_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = wrap_model(tiny_model(), tiny_tokenizer())
    whole = encode(lm, "home 字")
    assert len(whole) >= len(encode(lm, "home")) + 3
    prompt, new = whole[:-1], whole[-1:]
    assert "\ufffd" in lm.tokenizer.decode(new)
    writing(lm, monkeypatch, [*new, EOS])
    assert generate(lm, [prompt], max_new_tokens=3) == [["字"]]


def test_spaces_before_punctuation_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tokenizers tidy up what they decode: then prompt and continuation no longer meet."""
    tokenizer = tiny_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    lm = wrap_model(tiny_model(), tokenizer)
    whole, before = "I do n't know . Do you ?", "I do"
    new = encode(lm, whole)[len(encode(lm, before)) :]
    writing(lm, monkeypatch, [*new, EOS])
    assert generate(lm, [encode(lm, before)], max_new_tokens=30) == [[whole.removeprefix(before)]]


def test_a_stop_string_that_begins_in_the_prompt_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = wrap_model(tiny_model(), tiny_tokenizer())
    prompts = [encode(lm, text) for text in ("home\n", "She felt sad and angry\n")]
    new = lm.tokenizer("Jane and Joe\nJoe", add_special_tokens=False)["input_ids"]
    passes = writing(lm, monkeypatch, [*new, EOS])
    texts = generate(lm, prompts, max_new_tokens=40, until=["\nJ"])[0]
    assert texts == ["Jane and Joe\nJ"] * 2
    assert len(passes) == len(new) - 2


def test_rows_that_have_stopped_show_no_padding() -> None:
    """Each stops where it would alone, though the batch goes on."""
    lm = wrap_model(tiny_model(), tiny_tokenizer())
    prompts = encode_many(lm, TEXTS)
    free = generate(lm, prompts, max_new_tokens=20)[0]
    stop = next(c for c in free[0][3:] if any(c not in text for text in free[1:]) or c != free[0][0])
    together = generate(lm, prompts, max_new_tokens=20, until=[stop], batch_size=4)[0]
    for prompt, text, whole in zip(prompts, together, free, strict=True):
        assert generate(lm, [prompt], max_new_tokens=20, until=[stop])[0] == [text]
        assert text.partition(stop)[0] == whole.partition(stop)[0]


# -- ids that a model has no embedding for ------------------------------------------------------------


def test_a_pad_token_beyond_the_embeddings_is_never_used(recwarn: pytest.WarningsRecorder) -> None:
    plain, beyond = tiny_tokenizer(pad=False), tiny_tokenizer(pad=False)
    beyond.add_special_tokens({"pad_token": "<new pad>"})
    assert beyond.pad_token_id >= 300
    lm, other = wrap_model(tiny_model(), beyond), wrap_model(tiny_model(), plain)
    prompts = encode_many(other, TEXTS)
    assert encode_many(lm, TEXTS) == prompts
    assert generate(lm, prompts, max_new_tokens=5) == generate(other, prompts, max_new_tokens=5)
    got, expected = (next_token(model, prompts, [BASE], watch=[5, 6]) for model in (lm, other))
    np.testing.assert_allclose(got.logits, expected.logits, atol=1e-5)


def test_a_prompt_with_a_token_beyond_the_embeddings_is_named() -> None:
    lm = wrap_model(tiny_model(), tiny_tokenizer())
    lm.tokenizer.add_tokens(["<image>"])
    bad = encode_many(lm, ["home", "an <image> of home"])
    for call in (lambda: generate(lm, bad), lambda: next_token(lm, bad, [BASE], watch=[5])):
        with pytest.raises(UserError, match=r"prompt 1: token \d+ \('<image>'\) is beyond the model's 300"):
            call()


# -- how long a text may be ---------------------------------------------------------------------------


def test_the_models_positions_decide_and_a_smaller_limit_is_told(
    in_process: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save_tiny(tmp_path / "model", n_blocks=2, d=16)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 24}))
    (tmp_path / "texts.txt").write_text("\n".join([*TEXTS, " ".join(CORPUS[:3]), " ".join(CORPUS)]) + "\n")

    def harvested(out: str, *options: str) -> tuple[dict[str, Any], np.ndarray, str]:
        command(
            monkeypatch, "harvest", "--model", folder, "--texts", tmp_path / "texts.txt",
            "--out", tmp_path / out, "--actors", "1", *options,
        )  # fmt: skip
        manifest = json.loads((tmp_path / out / "manifest.json").read_text())
        return manifest, read_all(tmp_path / out)["n_tokens"].to_numpy(), capsys.readouterr().err

    manifest, lengths, told = harvested("usual")
    assert (manifest["context"], manifest["tokenizer_limit"]) == (CONTEXT, 24)
    assert 24 < lengths[4] < CONTEXT == lengths[5]
    assert manifest["truncated"] == 1
    assert "1 text longer than the model's context, cut at the start" in told
    assert "the tokenizer's own limit, 24 tokens, is below the model's" in told
    manifest, lengths, told = harvested("short", "--max-tokens", "24")
    assert lengths.max() == 24
    assert manifest["identity"]["max_tokens"] == 24
    assert f"{manifest['truncated']} texts longer than --max-tokens 24" in told
    lm = wrap_model(tiny_model(n_blocks=2, d=16), tiny_tokenizer())
    ids = lm.tokenizer(" ".join(CORPUS), add_special_tokens=False)["input_ids"]
    expected = capture_ids(lm, [[0, *ids[-23:]]], [1])[1]
    np.testing.assert_allclose(rows_of(tmp_path / "short", 1)[5:], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="--max-tokens 1: expected more than the 1 before every text"):
        from contrans_dist.engine.capture import truncate

        truncate(lm, [[0, 5]], 1)


@pytest.mark.parametrize(
    ("architecture", "context"),
    [("gpt2", CONTEXT), ("mpt", CONTEXT), ("bloom", None), ("gemma3", CONTEXT), ("opt", CONTEXT)],
)
def test_what_architectures_call_their_positions(architecture: str, context: int | None) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 24
    assert wrap_model(tiny_model(architecture), tokenizer).context == context
