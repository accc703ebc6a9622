"""Optuna chooses hyperparameters within a budget."""
