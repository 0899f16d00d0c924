"""Worlds: compiled ones of ours, and any Gymnasium environment on the host."""
