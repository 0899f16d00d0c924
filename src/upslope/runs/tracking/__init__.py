"""Send a run to experiment trackers: a separate process reads the run directory while it grows."""
