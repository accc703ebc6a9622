"""A configuration: read in layers, checked as a whole, explained where it is wrong."""
