"""Activation sets from texts: the driver, its actors, one shard, and the manifest that is written last."""
