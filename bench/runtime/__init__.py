"""The runtime's figures, each beside a peer: ``python -m bench.runtime``."""
