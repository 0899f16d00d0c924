"""Exploration bonuses: each maps facts and its own state to an intrinsic reward."""
