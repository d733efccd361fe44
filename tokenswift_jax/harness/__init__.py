"""lm-evaluation-harness on models of this package, without a server between them."""
