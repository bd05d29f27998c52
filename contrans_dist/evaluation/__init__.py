"""Steered models scored: conditions, the driver, its actors, the search for strengths and blocks.

A condition is one entry in `conditions.py`, which nothing else in the program names.

Imports: config, store, data, models, engine, distributed, vectors, mapping, benchmarks.
"""
