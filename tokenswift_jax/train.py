"""`python -m tokenswift_jax.train`: draft heads for a checkpoint. The Python class is `tokenswift_jax.SwiftTrainer`."""

import os
import sys

from tokenswift_jax.training.cli import main

if __name__ == "__main__":
    status = main()
    if status:
        # The threads of a checkpoint writer that failed complain when the interpreter ends, below our own last line.
        # Nothing is lost: `train` has closed its checkpoints and metrics by now, whatever stopped it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
