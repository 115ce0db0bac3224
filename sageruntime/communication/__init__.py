"""How tasks communicate: packets, connections, partitioning and routing."""
