"""Experiments that test the claims of the theory, and the race up the ladder."""
