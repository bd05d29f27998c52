"""Activation sets from texts: the driver, its actors, one shard, and the manifest that is written last.

Imports: config, store, data, models, engine, distributed.
"""
