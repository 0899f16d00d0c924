"""Send a run to experiment trackers: a process of its own reads the run directory while it grows."""
