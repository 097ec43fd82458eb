"""Few-step diffusion with a cached reference and a causal sliding window."""
