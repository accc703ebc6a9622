"""References to a user's code and models: found, loaded, and told apart from libraries."""
