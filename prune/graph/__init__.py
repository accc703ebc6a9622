"""Which channels go together, where they lie in each tensor, and how they are cut."""
