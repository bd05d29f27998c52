"""The command line: parse, call, print. Heavy imports wait until a command needs them, so help is quick.

Imports: config, store, data, models, engine, harvest, vectors, mapping, evaluation, report, pipeline.
"""

from contrans_dist.cli.main import app, main, run_script

__all__ = ["app", "main", "run_script"]
