"""Statistics, scores and credit computed from run directories."""
