"""The map between two models: aligned rows, their sums, the solver, its worth, and vectors through it.

Imports: config, store, data, models, engine, distributed, vectors.
"""
