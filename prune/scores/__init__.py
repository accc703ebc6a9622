"""What a channel is worth, and what is known of the model to tell it."""
