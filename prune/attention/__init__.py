"""Attention: heads, or dimensions of all heads, go; what cannot run narrower than the model gets a stand-in."""
