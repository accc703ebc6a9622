"""Depth: whole residual blocks and transformer layers go, in order of the damage that it does."""
