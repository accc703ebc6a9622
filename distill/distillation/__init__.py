"""What a student learns from its teacher: the losses, and the teachers that answer."""
