"""`python -m tokenswift_jax.generate`: text from a checkpoint. The Python function is `tokenswift_jax.generate`."""

import sys

from tokenswift_jax.cli.generate import main

if __name__ == "__main__":
    sys.exit(main())
