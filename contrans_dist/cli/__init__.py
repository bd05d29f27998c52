"""The command line: parse, call, print. Heavy imports wait until a command needs them, so help is quick."""

from contrans_dist.cli.main import app, main

__all__ = ["app", "main"]
