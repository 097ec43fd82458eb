"""Portraits made once, at leisure: a person's photos -> the picture that is driven, by itself or through a published identity system."""
