"""A run on disk, and what writes and reads it."""
