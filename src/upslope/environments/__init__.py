"""Compiled environments, and the lookup of any environment by name."""
