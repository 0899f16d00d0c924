"""Where training runs: compiled programs, host loops, worker processes."""
