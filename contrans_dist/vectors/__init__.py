"""Concept vectors: made from rows of activations, on disk, and combined.

Imports: store, data.
"""
