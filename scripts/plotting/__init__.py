"""Figures of what was measured, one kind of measurement a module."""
