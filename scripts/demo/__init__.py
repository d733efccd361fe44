"""The bundled demo model's own parts, one concept a module; the training itself is tokenswift_jax.training's."""
