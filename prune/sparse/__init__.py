"""Sparsity: weights that are zero in a pattern and stay zero. It makes files smaller, and CPUs no faster."""
