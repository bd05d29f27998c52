"""Steered models scored: conditions, the driver, its actors, the search for strengths and blocks."""
