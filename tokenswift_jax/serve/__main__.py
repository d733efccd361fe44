"""`python -m tokenswift_jax.serve`: a server of one checkpoint."""

from tokenswift_jax.cli.command import leave
from tokenswift_jax.serve.cli import main

if __name__ == "__main__":
    leave(main())
