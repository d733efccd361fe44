"""A folder of prompts on a Ray cluster: a worker for each GPU. Ray starts workers again that have died, and the others
take over their documents meanwhile.

python examples/cluster/ray_documents.py WORKERS --model DIR --documents DIR --output DIR --max-new-tokens 100000
"""

import subprocess
import sys

import ray


@ray.remote(max_retries=10, retry_exceptions=True)
def worker(words):
    """Runs one worker; Ray sets CUDA_VISIBLE_DEVICES for it. Returns its exit status, unless a signal ended it."""
    status = subprocess.run([sys.executable, "-m", "tokenswift_jax.generate", *words], check=False).returncode
    if status < 0:
        raise RuntimeError(f"signal {-status} ended a worker")  # Ray tries again
    return status


def main():
    """Starts the workers and waits for them; the exit status is the largest of theirs."""
    count, *words = sys.argv[1:]
    ray.init()
    gpus = min(1, ray.cluster_resources().get("GPU", 0))
    return max(ray.get([worker.options(num_gpus=gpus).remote(words) for _ in range(int(count))]))


if __name__ == "__main__":
    sys.exit(main())
