"""`python -m tokenswift_jax COMMAND`: the program `tokenswift`, for use where it is not on the path."""

from tokenswift_jax.cli.command import leave
from tokenswift_jax.cli.commands import main

if __name__ == "__main__":
    leave(main(program="python -m tokenswift_jax"))
