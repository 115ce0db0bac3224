"""Core: what all other parts of the runtime share; it imports none of them."""
