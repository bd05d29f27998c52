"""Characters: whole ones, and letters of scripts whose words are not set apart by blanks."""

from contrans_dist.errors import UserError

_HAN = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"
_SOUTH_EAST_ASIA = (  # Thai, Lao, Myanmar, Khmer, Tai Le, Tai Lue, Tai Tham, Balinese, Javanese, Tai Viet
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaadf"
)
_HANGUL = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"

WITHOUT_BLANKS = _HAN + _KANA + _SOUTH_EAST_ASIA
"""Letters between which no blank stands: what goes between the brackets of a regular expression."""

SHARES = {_HAN: 8, _HANGUL: 6, _KANA: 4, _SOUTH_EAST_ASIA: 3}
"""By letters, as in `WITHOUT_BLANKS`: the share of a word that one of them is on average, in twelfths.
Hangul has blanks between its words, but they are long, and people disagree where the blanks stand."""


def check_whole(text: str, where: str) -> None:
    """Refuse half a character: a lone surrogate, which no file can hold.

    Args:
        text: An argument of the command line that is not UTF-8 has such too.
        where: What the message begins with.

    Raises:
        UserError: For one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half, before = text[error.start], text[max(error.start - 20, 0) : error.start]
        raise UserError(
            f"{where}: expected whole characters, found half of one (\\u{ord(half):04x}) after {before!r}"
        ) from error
