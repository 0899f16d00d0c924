"""What is wrong: the doctor, the self-test of an environment, the probes."""
