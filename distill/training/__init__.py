"""The training loop, and what it needs: batches, views, optimizer, checkpoints."""
