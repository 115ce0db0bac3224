"""Two versions of the runtime beside each other."""
