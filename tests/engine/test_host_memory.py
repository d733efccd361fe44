"""The memory that may still be taken: MemAvailable, and what the limits of cgroups leave."""

from pathlib import Path

import pytest

from tests.tiny import tiny_config
from tokenswift_jax.engine import capacity
from tokenswift_jax.engine.host_memory import available_bytes
from tokenswift_jax.errors import UserError
from tokenswift_jax.hardware.cgroups import contents

MB = 2**20
MEMINFO = "MemTotal: 16000000 kB\nMemFree: 100 kB\nMemAvailable: 8000000 kB\n"


@pytest.fixture
def system(tmp_path):
    """A system's folders with MemAvailable 8,192,000,000 bytes; `write(path, text)` adds a file."""

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", MEMINFO)
    return tmp_path, write


def version2(write, cgroup, mounted="/", limit="max", current=300 * MB, cached=100 * MB, folder=""):
    write("proc/self/cgroup", f"0::{cgroup}\n")
    write("proc/self/mountinfo", f"31 23 0:28 {mounted} /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n")
    write(f"sys/fs/cgroup/{folder}/memory.max", f"{limit}\n")
    write(f"sys/fs/cgroup/{folder}/memory.current", f"{current}\n")
    write(f"sys/fs/cgroup/{folder}/memory.stat", f"anon 5\ninactive_file {cached}\nactive_file 7\n")


def test_available_memory_counts_what_the_kernel_can_drop(system):
    assert available_bytes(system[0]) == 8_000_000 * 1024


@pytest.mark.parametrize(
    ("cgroup", "mounted", "folder"),
    [
        ("/", "/", ""),  # inside a container with a cgroup namespace
        ("/docker/abc", "/docker/abc", ""),  # inside one without
        ("/docker/abc", "/", "docker/abc"),  # on the host
        ("/user.slice/run.scope", "/", "user.slice"),  # a limit above the process's own cgroup
        ("/../elsewhere", "/", ""),
    ],
)
def test_a_limit_of_version_2(system, cgroup, mounted, folder):
    root, write = system
    version2(write, cgroup, mounted, limit=1000 * MB, folder=folder)
    assert available_bytes(root) == (1000 - 300 + 100) * MB


def test_no_limit_and_a_loose_limit_leave_the_memory_of_the_machine(system):
    root, write = system
    version2(write, "/")
    assert available_bytes(root) == 8_000_000 * 1024
    version2(write, "/", limit=99_999 * MB)
    assert available_bytes(root) == 8_000_000 * 1024


def test_a_limit_that_is_used_up_leaves_nothing(system):
    root, write = system
    version2(write, "/", limit=200 * MB, cached=0)
    assert available_bytes(root) == 0


def test_a_limit_of_version_1(system):
    root, write = system
    write("proc/self/cgroup", "8:pids:/\n4:cpu,memory:/docker/abc\n0::/\n")
    mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    mounts += "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    write("proc/self/mountinfo", mounts)
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", str(500 * MB))
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", str(200 * MB))
    write("sys/fs/cgroup/memory/memory.stat", f"inactive_file 1\ntotal_inactive_file {50 * MB}\n")
    assert available_bytes(root) == 350 * MB
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    assert available_bytes(root) == 8_000_000 * 1024


@pytest.mark.parametrize(("limit", "usage"), [("Max address space", "VmSize"), ("Max data size", "VmData")])
def test_a_limit_of_the_process_itself(system, limit, usage):
    root, write = system
    line = "{:<26}{:<21}unlimited            bytes\n"  # the kernel's columns
    write("proc/self/status", f"Name:\tpython\n{usage}:\t  1024 kB\n")
    write("proc/self/limits", "Limit                     Soft Limit\n" + line.format(limit, 500 * MB))
    assert available_bytes(root) == 499 * MB
    write("proc/self/limits", line.format(limit, "unlimited"))
    assert available_bytes(root) == 8_000_000 * 1024


def test_the_check_before_a_run_uses_it(monkeypatch):
    monkeypatch.setattr(capacity, "available_bytes", lambda: 10 * MB)
    with pytest.raises(UserError, match=r"needs 1\.1 GB.* and 0\.0 GB are free; lower it"):
        capacity.check_memory(tiny_config(), 1, 2**22, "float32", advice="lower it")


def test_this_machine_reports_a_sensible_number():
    found = available_bytes()
    assert found is None or 2**20 < found < 2**50
    assert contents(Path("/no/such/file")) == ""
