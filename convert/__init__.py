"""Conversion between HF checkpoints, the reference program's and this project's."""
