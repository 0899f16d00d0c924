"""Find out what is wrong: the doctor, the self-test of an environment, and the probes."""
