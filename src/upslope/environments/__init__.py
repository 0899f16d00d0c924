"""Compiled environments, and how any name becomes an environment."""
