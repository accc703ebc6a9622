"""Ours beside other tools, from the same files and the same rows: campaigns that anyone can run again."""
