"""Sweeps search an algorithm's settings, and compare the winner with the defaults on seeds that no trial has seen."""
