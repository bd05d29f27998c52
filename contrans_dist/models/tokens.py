"""Texts to token ids and back: the one place where this is done."""

from collections.abc import Sequence
from datetime import date
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from contrans_dist.config import CHAT_DATE
from contrans_dist.errors import UserError, one_line

if TYPE_CHECKING:
    from contrans_dist.models.language_model import LanguageModel

Turns = list[dict[str, str]]
"""A conversation: `role` and `content` of each turn."""
_PROBES = ("a", "home", "0", "\u5b57")
_MARK = "Zq7"
_TAIL = 32
"""Tokens of a prompt on which the text of what follows may depend."""
NO_TOKENS = "no tokens (an empty text, and a tokenizer without BOS)"


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The token ids that a tokenizer puts before and after every text: mostly one BOS or none; nothing."""
    for text in _PROBES:
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = tokenizer(text)["input_ids"]
        for start in range(len(whole) - len(plain) + 1) if plain else ():
            if whole[start : start + len(plain)] == plain:
                return list(whole[:start]), list(whole[start + len(plain) :])
    return [], []


def encode_many(
    lm: "LanguageModel", texts: Sequence[str], chat: bool = False, chat_date: date = CHAT_DATE
) -> list[list[int]]:
    """Token ids of each text, not truncated, behind what the tokenizer puts before every text (`lm.front`).

    They end with the text's own last token: what a tokenizer adds behind a text (EOS) says that it is over,
    and is left out.

    Args:
        lm: The model.
        texts: Any number.
        chat: Whether each is the user's turn in the tokenizer's chat template, up to where the answer begins;
            the template writes its own BOS, so none is added.
        chat_date: The day that the template is told.

    Raises:
        UserError: Where the tokenizer has no chat template, or one that does not serve.
    """
    if not texts:
        return []
    front = lm.front
    if chat:
        texts, front = chat_prompts(lm.tokenizer, texts, chat_date, lm.name), []
    return [[*front, *ids] for ids in plain_ids(lm.tokenizer, texts)]


def encode(lm: "LanguageModel", text: str, chat: bool = False, chat_date: date = CHAT_DATE) -> list[int]:
    """Token ids of one text; see `encode_many`."""
    return encode_many(lm, [text], chat, chat_date)[0]


def encode_with_starts(
    lm: "LanguageModel", texts: Sequence[str]
) -> tuple[list[list[int]], list[list[int]] | None]:
    """Token ids of each text as `encode_many` gives them, and where in the text each token begins.

    Returns:
        The token ids of each text; and of each the characters at which its tokens begin, -1 for a token that
        no text stands for, or None where the tokenizer cannot say.
    """
    if not texts or not getattr(lm.tokenizer, "is_fast", False):
        return encode_many(lm, texts), None
    encoded = _plain(lm.tokenizer, texts, return_offsets_mapping=True)
    ids = [[*lm.front, *row] for row in encoded["input_ids"]]
    before = [-1] * len(lm.front)
    return ids, [
        [*before, *(low if (low, high) != (0, 0) else -1 for low, high in spans)]
        for spans in encoded["offset_mapping"]
    ]


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text alone, with nothing put around it."""
    return [list(ids) for ids in _plain(tokenizer, texts)["input_ids"]] if texts else []


def _plain(tokenizer: Any, texts: Sequence[str], **options: Any) -> Any:
    return tokenizer(
        list(texts), add_special_tokens=False, padding=False, truncation=False, verbose=False, **options
    )


# -- chat templates --------------------------------------------------------------------------------------


def chat_prompts(tokenizer: Any, texts: Sequence[str], chat_date: date, name: str = "") -> list[str]:
    """Each text as the user's turn in the tokenizer's chat template, up to where the answer begins."""
    turns: list[Turns] = [[{"role": "user", "content": text}] for text in texts]
    return rendered(tokenizer, turns, chat_date, name, add_generation_prompt=True)


def rendered(
    tokenizer: Any, conversations: list[Turns], chat_date: date, name: str = "", **options: bool
) -> list[str]:
    """Conversations as the tokenizer's chat template writes them.

    Args:
        tokenizer: With a chat template.
        conversations: The turns of each.
        chat_date: The day that the template is told, at midnight: they read the same on every day.
        name: The model's, for messages.
        options: As in transformers' `apply_chat_template`.

    Raises:
        UserError: Where there is no template, or one that does not serve.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"--chat: the tokenizer of {name or 'this model'} has no chat template")
    given: dict[str, Any] = {"date_string": chat_date.strftime("%d %b %Y"), **options}
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template, given["day"] = _CLOCK + template, _day(chat_date)
        return list(
            tokenizer.apply_chat_template(conversations, chat_template=template, tokenize=False, **given)
        )
    except (*_TEMPLATE_FAILS, TemplateError) as error:
        raise UserError(
            f"--chat: the chat template of {name or 'this model'} fails: {one_line(error)}"
        ) from error


_TEMPLATE_FAILS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a template of a stranger may raise, beside jinja's own errors."""
_CLOCK = (
    "{%- macro strftime_now(format) -%}{%- set told = namespace(text=format) -%}"
    "{%- for code, value in day -%}{%- set told.text = told.text | replace(code, value) -%}{%- endfor -%}"
    "{{ told.text }}{%- endmacro %}\n"
)
"""In front of a chat template that asks for the time: it is asked instead of the real clock."""
_CODES = [*(f"%-{c}" for c in "dmHIMSjy"), *(f"%{c}" for c in "aAbBcdDeFgGhHIjklmMnpPrRStTuUVwWxXyY")]


def _day(chat_date: date) -> list[tuple[str, str]]:
    """What each code of `strftime` stands for at midnight; `%%` is kept apart meanwhile."""
    codes = [(code, chat_date.strftime(code)) for code in _CODES]
    return [("%%", "\0"), *codes, ("%z", ""), ("%Z", ""), ("%f", "000000"), ("\0", "%")]


def around(tokenizer: Any, chat: bool = False, chat_date: date = CHAT_DATE) -> dict[str, str]:
    """What stands before and after every text (`front`, `back`), and what the tokenizer would have added
    behind it and is left out (`left_out`), as text."""
    if chat:
        front, _, back = chat_prompts(tokenizer, [_MARK], chat_date)[0].partition(_MARK)
        return {"front": front, "back": back, "left_out": ""}
    front_ids, back_ids = special_tokens(tokenizer)
    return {"front": tokenizer.decode(front_ids), "back": "", "left_out": tokenizer.decode(back_ids)}


# -- back to text ----------------------------------------------------------------------------------------


class After:
    """What follows a prompt (token ids), as text: the whole decoded, less the prompt decoded.

    Decoded alone, a continuation would lose the space that it begins with in many tokenizers.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        special = set(getattr(tokenizer, "all_special_ids", ()))
        self._tokenizer = tokenizer
        self._tail = [token for token in prompt if token not in special][-_TAIL:]
        self._before = {skip: self._decoded(self._tail, skip) for skip in (True, False)}

    def text(self, new: Sequence[int], special: bool = False) -> str:
        """The text of the tokens `new`; with `special`, special tokens are shown."""
        whole = self._decoded([*self._tail, *new], not special)
        # Where the prompt ends inside a character, the whole says another one there.
        return whole[len(commonprefix([self._before[not special], whole])) :]  # noqa: RUF071 -- characters are meant

    def _decoded(self, ids: list[int], skip: bool) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))


class Alone:
    """What follows a prompt, decoded without the prompt: in many tokenizers it loses a space at its start."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def text(self, new: Sequence[int], special: bool = False) -> str:
        """The text of the tokens `new`; with `special`, special tokens are shown."""
        return str(self._tokenizer.decode(list(new), skip_special_tokens=not special))


# -- what a model can take ---------------------------------------------------------------------------------


def cut_to(lm: "LanguageModel", ids: list[int], new_tokens: int) -> list[int]:
    """A prompt that the context has room for, beside the tokens that are to follow it.

    Args:
        lm: The model.
        ids: Token ids of the prompt, which loses its first ones; what the tokenizer puts before every text
            stays.
        new_tokens: How many tokens are to follow.

    Raises:
        UserError: Where no prompt has room.
    """
    if lm.context is None:
        return ids
    room = lm.context - new_tokens
    if room <= len(lm.front):
        raise UserError(
            f"max_new_tokens {new_tokens}: the model's context holds {lm.context}, and a prompt needs room"
        )
    return shortened(lm, ids, room)


def shortened(lm: "LanguageModel", ids: list[int], most: int) -> list[int]:
    """A text of at most so many tokens, more than `lm.front` has: those in front and its END are kept."""
    if len(ids) <= most:
        return ids
    front = lm.front if ids[: len(lm.front)] == lm.front else []
    return [*front, *ids[len(ids) - (most - len(front)) :]]


def unusable(lm: "LanguageModel", ids: Sequence[int]) -> str | None:
    """Why a text of these tokens cannot be run, in words; None where it can."""
    if not ids:
        return NO_TOKENS
    embedded = lm.decoder.get_input_embeddings().weight.shape[0]  # type: ignore[operator,union-attr]
    beyond = max(ids) if min(ids) >= 0 else min(ids)
    if 0 <= beyond < embedded:
        return None
    name = lm.tokenizer.convert_ids_to_tokens(beyond)
    return f"token {beyond} ({name!r}) is beyond the model's {embedded} embeddings"
