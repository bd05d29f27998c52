"""Texts to token ids."""

from typing import TYPE_CHECKING, Any

from contrans_dist.errors import UserError

if TYPE_CHECKING:
    from contrans_dist.models.language_model import LanguageModel


def front_tokens(tokenizer: Any) -> list[int]:
    """The token ids that a tokenizer puts before every text (mostly one BOS, or none)."""
    text = "a"
    with_special = tokenizer(text)["input_ids"]
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    for start in range(len(with_special) - len(plain) + 1):
        if with_special[start : start + len(plain)] == plain:
            return with_special[:start]
    return []


def encode_many(lm: "LanguageModel", texts: list[str], chat: bool = False) -> list[list[int]]:
    """Token ids of each text, not truncated, with the special tokens that the tokenizer itself adds.

    `chat`: each text is the user's turn in the tokenizer's chat template, up to where the answer begins. The
    template writes its own BOS, so none is added. Raises UserError where the tokenizer has no template.
    """
    if not texts:
        return []
    if not chat:
        return lm.tokenizer(list(texts), padding=False, truncation=False, verbose=False)["input_ids"]
    if not getattr(lm.tokenizer, "chat_template", None):
        raise UserError(f"--chat: the tokenizer of {lm.name or 'this model'} has no chat template")
    turns = [[{"role": "user", "content": text}] for text in texts]
    encoded = lm.tokenizer.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    return encoded["input_ids"]


def cut_to(lm: "LanguageModel", ids: list[int], new_tokens: int) -> list[int]:
    """A prompt without as many of its first tokens as the context has no room for, beside `new_tokens`.

    What the tokenizer puts before every text stays. Raises UserError where no prompt has room.
    """
    if lm.context is None:
        return ids
    room = lm.context - new_tokens
    if room <= len(lm.front):
        raise UserError(
            f"max_new_tokens {new_tokens}: the model's context holds {lm.context}, and a prompt needs room"
        )
    return ids if len(ids) <= room else [*lm.front, *ids[len(ids) - (room - len(lm.front)) :]]


def encode(lm: "LanguageModel", text: str, chat: bool = False) -> list[int]:
    """Token ids of one text; see `encode_many`."""
    return encode_many(lm, [text], chat)[0]


def unusable(lm: "LanguageModel", ids: list[int]) -> str | None:
    """Why a text of these tokens cannot be run, in words; None where it can."""
    if not ids:
        return "no tokens (an empty text, and a tokenizer without BOS)"
    embedded = lm.decoder.get_input_embeddings().weight.shape[0]  # type: ignore[operator,union-attr]
    beyond = next((token for token in ids if not 0 <= token < embedded), None)
    if beyond is None:
        return None
    name = lm.tokenizer.convert_ids_to_tokens(beyond)
    return f"token {beyond} ({name!r}) is beyond the model's {embedded} embeddings"
