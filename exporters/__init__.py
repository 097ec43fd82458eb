"""Offline: published or trained weights become folders and graphs for the engine. Nothing here runs while someone is served."""
