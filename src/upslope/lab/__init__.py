"""The theory's claims as experiments, and the race up the ladder."""
