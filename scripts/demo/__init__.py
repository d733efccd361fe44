"""The pieces of the bundled demo model's training, one concept a module."""
