"""Videos of a person become a data set: what was seen, tracked and heard, frame by frame, and what it teaches the puppet."""
