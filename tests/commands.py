"""The command line in this process, as a user meets it: what it prints, and the code it ends with."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from contrans_dist.cli import main


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, *said: str) -> str:
        """The one line of a command that was refused for its input, which says all of `said`."""
        assert self.code == 2, (self.code, self.err)
        lines = self.err.rstrip("\n").split("\n")
        assert len(lines) == 1, self.err
        assert lines[0].startswith("contrans: "), self.err
        assert "unexpected" not in lines[0].replace("unexpected extra argument", "")
        for each in said:
            assert each in lines[0], (each, lines[0])
        return lines[0]


def run(capsys: pytest.CaptureFixture[str], *arguments: Any, entry: Callable[[], None] = main) -> Ended:
    """`contrans ARGUMENTS...`, or another entry point with these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["contrans", *map(str, arguments)])
        capsys.readouterr()
        try:
            entry()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        else:
            code = 0
        out, err = capsys.readouterr()
    return Ended(code, out, err)
