"""What `map_options.py` measures: which options of the map carry concepts over, between two small models."""
