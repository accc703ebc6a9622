"""A report of measurements for people and machines, one medium a file."""
