"""What a set says that its bytes depend on: kept as it stands, whoever wrote it."""

import hashlib
import json
from typing import Any

import pytest

from contrans_dist.config.recipe import validated
from contrans_dist.errors import UserError
from contrans_dist.store.identity import Identity
from contrans_dist.store.results import plain

PART = {"rows": 5, "texts": "t5", "prompts": "p5", "shard_size": 2}
GROWN: dict[str, Any] = {
    "model": "m", "dtype": "float32", "quantization": None, "a_later_key": [1, {"x": None}],
    "rows": 12, "texts": "t12", "prompts": "p12", "shard_size": 4,
    "earlier": [PART, {"rows": 9, "texts": "t9", "prompts": "p9", "shard_size": 3}],
}  # fmt: skip


def test_an_identity_is_written_as_it_was_read() -> None:
    """Keys of later versions count in the fingerprint, and none that was not there is added."""
    identity = Identity.model_validate(GROWN)
    assert plain(identity) == GROWN
    canonical = json.dumps(GROWN, sort_keys=True, separators=(",", ":"))
    assert identity.fingerprint == hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert identity.fingerprint != Identity.model_validate({**GROWN, "a_later_key": 2}).fingerprint


def test_a_grown_sets_earlier_identities() -> None:
    """Those that it had each time that texts were appended, without what came later."""
    settings = {key: GROWN[key] for key in ("model", "dtype", "quantization", "a_later_key")}
    first, second, last = map(plain, Identity.model_validate(GROWN).stages())
    assert first == {**settings, **PART}
    assert second == {**settings, **GROWN["earlier"][1], "earlier": [PART]}
    assert last == GROWN


@pytest.mark.parametrize(
    ("earlier", "said"),
    [
        (3, "earlier: expected a valid list"),
        ([{**PART, "rows": -1}], "earlier.0.rows: expected greater than 0"),
        ([{"rows": 3}], "missing key 'earlier.0.texts'"),
        ([PART, PART], "expected parts that each end behind the one before"),
        ([{**PART, "rows": 12}], "expected parts that each end behind the one before"),
    ],
)
def test_parts_that_cannot_be_are_refused(earlier: object, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        validated(Identity, {**GROWN, "earlier": earlier}, "here")
    assert "\n" not in str(error.value)
