"""An address of a cluster that there cannot be is one line, before Ray itself tries it for minutes."""

import pytest
import ray

from contrans_dist.distributed.cluster import connected
from contrans_dist.errors import RunError


@pytest.mark.parametrize("address", ["ray://127.0.0.1:99999", "127.0.0.1:99999", "a..b:1", "127.0.0.1:1"])
def test_where_no_cluster_can_be(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before: `unexpected OverflowError`, or UnicodeError."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(RunError, match=f"--address {address}: no Ray cluster answered"):
        connected(address).__enter__()


def test_what_only_looks_like_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before: `invalid literal for int()`. What is no port is left to Ray."""
    asked: list[str] = []

    def connect(address: str, *_: object, **__: object) -> None:
        asked.append(address)
        raise RuntimeError("nobody there")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", connect)
    with pytest.raises(RunError):
        connected("127.0.0.1:\u00b2").__enter__()
    assert asked == ["127.0.0.1:\u00b2"]
