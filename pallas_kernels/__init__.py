"""Kernels, one folder each: `reference.py` defines the operation, the folder's `__init__` picks the implementation."""
