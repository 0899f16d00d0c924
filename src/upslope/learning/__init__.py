"""Policy iteration of one seed: act, weigh, move."""
