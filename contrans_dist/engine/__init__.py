"""Every forward pass, as plain functions over a loaded model: capture, shared prefixes, scoring, steering.

Imports: config, store, data, models.
"""
