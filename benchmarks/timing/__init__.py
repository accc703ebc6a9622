"""Timing on this machine or a board: jobs for `runner.py`, in a process of their own."""
