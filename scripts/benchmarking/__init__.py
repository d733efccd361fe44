"""The pieces of the benchmark, one concept a module."""
