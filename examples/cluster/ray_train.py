"""Draft heads on a Ray cluster: a worker with GPUs of one machine trains them. Ray starts it again if it dies, and it
goes on from its newest checkpoint (`--resume`): --output must be on a disk that the machines share.

python examples/cluster/ray_train.py GPUS --model DIR --data DIR --output DIR --max-steps 10000
"""

import os
import sys

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.jax import JaxTrainer


def train(given):
    """Runs the training in a worker; an exit status other than 0 is a failure, after which Ray tries again."""
    os.chdir(given["folder"])
    from tokenswift_jax.train import main  # here, so that Ray's driver needs no JAX

    status = main(given["words"])
    if status:
        raise RuntimeError(f"the training ended with status {status}")


def main():
    """Starts the worker and waits for it."""
    gpus, *words = sys.argv[1:]
    given = {"folder": os.getcwd(), "words": [*words, "--resume"]}
    resources = {"GPU": int(gpus)} if int(gpus) else {"CPU": 1}
    scaling = ScalingConfig(num_workers=1, use_gpu=int(gpus) > 0, resources_per_worker=resources)
    run = RunConfig(failure_config=FailureConfig(max_failures=10))
    JaxTrainer(train, train_loop_config=given, scaling_config=scaling, run_config=run).fit()


if __name__ == "__main__":
    main()
