"""Conversion between HF's checkpoints, the reference program's and this project's."""
