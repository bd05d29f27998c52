"""Fixtures of the report's tests."""

from typing import Any

import pytest

from contrans_dist.report import parts


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and left empty: drawing takes most of a page's time, and its words do not need it."""

    def empty(figure: Any, name: str, description: str) -> str:
        return f'<svg id="{name}-figure_1"><title>{description}</title></svg>'

    monkeypatch.setattr(parts, "to_svg", empty)
