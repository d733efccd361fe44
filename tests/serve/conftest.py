"""One server for all tests of the interface: its programs compile once."""

import jax
import pytest


@pytest.fixture(scope="package")
def live(tmp_path_factory):
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    pytest.importorskip("prometheus_client")
    from live import Live

    # Before any module's fixture asks for quick compilation, which would drop the programs that exist by then.
    jax.config.update("jax_disable_most_optimizations", True)
    server = Live(tmp_path_factory.mktemp("state") / "state").start()
    yield server
    server.stop()
