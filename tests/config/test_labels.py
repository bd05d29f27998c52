"""Label selectors, held against Ray's own rule for what is one."""

import re

import pytest
from pydantic import ValidationError
from ray._private.label_utils import LABEL_SELECTOR_REGEX

from contrans_dist.config import ClusterSettings
from contrans_dist.config.labels import matches, parse_selector


def test_a_selector_is_read_as_ray_reads_it() -> None:
    text = "ray.io/accelerator-type=in(A100, H100), market-type=!spot,zone=!in(eu-1,eu-2)"
    found = parse_selector(text)
    assert found == {
        "ray.io/accelerator-type": "in(A100,H100)", "market-type": "!spot", "zone": "!in(eu-1,eu-2)"
    }  # fmt: skip
    assert all(re.match(LABEL_SELECTOR_REGEX, value) for value in found.values())
    assert ClusterSettings(label_selector=text).selector == found
    assert parse_selector(None) == {}


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [("H100", {"H100"}), ("!H100", {"A100", None}), ("in(A,B)", {"A", "B"}), ("!in(A,B)", {"H100", None})],
)
def test_what_matches(wanted: str, labels: set[str | None]) -> None:
    assert {label for label in labels if matches(label, wanted)} == labels
    opposite = wanted.removeprefix("!") if wanted.startswith("!") else f"!{wanted}"
    assert not any(matches(label, opposite) for label in labels)


@pytest.mark.parametrize("text", ["H100", "a=", "a=in()", "a=b=c", "a=1,a=2", "a=b c", "=b", "a=in(b"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="expected name=value"):
        ClusterSettings(label_selector=text)
