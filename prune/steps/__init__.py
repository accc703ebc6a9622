"""Pruning in steps: score, choose, cut, correct."""
