"""One stage alone on anybody's model: what the verbs `prune` and `quantize` do."""
