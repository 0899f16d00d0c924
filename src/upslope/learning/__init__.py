"""Act, weigh, move: one seed's policy iteration."""
