"""Experiments that test the claims of the theory, the ladder that compares all algorithms, and sweeps of settings."""
