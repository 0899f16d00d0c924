"""Compiled environments of other libraries, one file per library."""
