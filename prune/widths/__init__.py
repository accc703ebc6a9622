"""How wide every layer becomes, and what that leaves of work, weights and time."""
