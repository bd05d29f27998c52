"""Places to write to, local or in object stores, and every file format, once, for writers and readers.

A format is one typed model in here: what it writes, who reads it and what is refused stand together.

Imports: config.
"""
