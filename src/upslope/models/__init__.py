"""Models that act and estimate values: observation encoders, networks, action heads, normalisers."""
