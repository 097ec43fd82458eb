"""Condition pictures and points: what a driver does, painted in a portrait's frame for the networks that read pictures of it."""
