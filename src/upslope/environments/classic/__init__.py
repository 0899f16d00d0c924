"""Gymnasium's classic control, compiled."""
