"""The engines that run training: compiled programs, host loops, and worker processes."""
