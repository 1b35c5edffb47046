"""Stable Diffusion and DALL·E 2 (unCLIP), trained and sampled end to end in JAX."""

__version__ = "0.1.0"
