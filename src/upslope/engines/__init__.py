"""The engines that run training: compiled programs, host loops, worker processes."""
