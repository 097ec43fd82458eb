"""Video networks that see a whole clip at once: no causal stream, so they render offline."""
