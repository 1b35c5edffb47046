"""What `python -m diffusion_jax.sample` is made of: plans, pictures, records."""
