"""What acts and judges: how observations are read, networks, action heads, normalisers."""
