"""Texts in: files, columns and templates, the corpus that a map is fitted on, and the contamination check.

Imports: config, store.
"""
