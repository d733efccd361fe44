"""`python -m tokenswift_jax.train`: draft heads for a checkpoint. The Python class is `tokenswift_jax.SwiftTrainer`."""

from tokenswift_jax.cli.command import leave
from tokenswift_jax.training.cli import main

if __name__ == "__main__":
    leave(main())
