"""The watchdog ends a stuck process with the place of each thread, and leaves one alone that makes progress."""

import subprocess
import sys
import time

from tokenswift_jax.processes import watchdog


def test_a_stuck_process_ends_and_says_where():
    program = (
        "import threading, time; from tokenswift_jax.processes.watchdog import watched\n"
        "def waits_forever(): time.sleep(60)\n"
        "threading.Thread(target=waits_forever, daemon=True).start()\n"
        "with watched(0.3): time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no progress for 0.3 s; this is where each thread is:")
    assert "in waits_forever" in done.stderr


def test_progress_keeps_it_away():
    with watchdog.watched(0.4):
        for _ in range(12):
            time.sleep(0.05)
            watchdog.beat()
