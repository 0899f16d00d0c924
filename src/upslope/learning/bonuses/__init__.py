"""Exploration bonuses, each of which maps a rollout and its own state to an intrinsic reward."""
