"""Sweeps: search an algorithm's settings, and hold the winner against the defaults on seeds that no trial has seen."""
