"""Ray: connecting to a cluster or starting one here, what it has room for, and one pool of actors.

Imports: config, store, models.
"""
