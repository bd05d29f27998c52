"""Concept vectors: made from rows of activations, on disk, combined, exported and imported.

Imports: config, store, data, models.
"""
