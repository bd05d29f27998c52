"""A recipe from its texts to its report; what of it is there already, and what it will take.

Imports: demo, config, store, data, models, engine, distributed, harvest, vectors, mapping,
benchmarks, evaluation, report.
"""
