"""Weights become graphs for one backend: traced, compared with PyTorch, narrowed, compiled, published."""
