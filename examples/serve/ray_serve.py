"""A server on a Ray cluster: serve run ray_serve:server, in this folder.

One replica: runs belong to the folder of the replica that made them. Ray gives each replica a GPU of its own.
"""

from asgi import build
from ray import serve

server = serve.deployment(
    serve.ingress(build)(),
    num_replicas=1,
    max_ongoing_requests=256,
    ray_actor_options={"num_gpus": 1},
    graceful_shutdown_timeout_s=30,
    health_check_timeout_s=60,
).bind()
