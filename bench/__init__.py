"""Throughput beside the peers: ``python -m bench``."""
