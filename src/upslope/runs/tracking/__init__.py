"""Send a run to experiment trackers from a separate process that reads the run directory as it grows."""
