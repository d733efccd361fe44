"""The bundled demo model: its text, its start, its final directory, its measures; tokenswift_jax.training trains it."""
