"""The server as an ASGI application: MODEL=DIR TOKENSWIFT_API_KEY=SECRET uvicorn --factory asgi:build

One process: the application owns the device and its folder of runs.
"""

import os
from pathlib import Path

import tokenswift_jax as ts
from tokenswift_jax.serve.app import create_app
from tokenswift_jax.serve.cli import make_pools
from tokenswift_jax.serve.service import Service


def build():
    """The application; it compiles its programs once it is started."""
    model = ts.load(os.environ.get("MODEL"))
    longest = os.environ.get("MAX_LENGTH")
    pools = make_pools(model, ts.SpeculationConfig(), int(longest) if longest else None)
    state = Path(os.environ.get("STATE_DIR", "state"))
    return create_app(Service(model, pools, name="model", state_dir=state), keys=[os.environ["TOKENSWIFT_API_KEY"]])
