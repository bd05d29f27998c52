"""Places to write to, local or in object stores, and every file format, once, for writers and readers."""
