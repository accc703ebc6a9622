"""The folder that leaves the house: the final file, vectors to check it by, and its card."""
