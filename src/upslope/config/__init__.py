"""The settings of a run, and the task built from them."""
