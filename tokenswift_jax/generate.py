"""`python -m tokenswift_jax.generate`: text from a checkpoint. The Python function is `tokenswift_jax.generate`."""

from tokenswift_jax.cli.command import leave
from tokenswift_jax.cli.generate import main

if __name__ == "__main__":
    leave(main())
