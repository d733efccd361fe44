"""`python -m tokenswift_jax.launch -n 2 generate ...`: several processes of one command on this machine."""

from tokenswift_jax.cli.command import leave
from tokenswift_jax.cli.launch import main

if __name__ == "__main__":
    leave(main())
