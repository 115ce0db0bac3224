"""Spices for sageruntime."""
