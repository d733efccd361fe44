"""The cores that a process may use: those of its affinity, within the time that its cgroups give it."""

import os

import pytest

from tokenswift_jax.hardware.environment import usable_cores

MOUNTS = {
    2: "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    1: "35 31 0:32 / /sys/fs/cgroup rw - cgroup cgroup rw,cpu,cpuacct\n",
}


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Writes the quota of the cgroup /a into the folders of a system; the affinity is of eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def write(version, quota, period=100_000):
        folder = tmp_path / "sys/fs/cgroup/a"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/self").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/self/mountinfo").write_text(MOUNTS[version])
        (tmp_path / "proc/self/cgroup").write_text("0::/a\n" if version == 2 else "3:cpu,cpuacct:/a\n")
        if version == 2:
            (folder / "cpu.max").write_text(f"{quota} {period}\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
            (folder / "cpu.cfs_period_us").write_text(f"{period}\n")
        return tmp_path

    return write


def test_without_cgroups_the_affinity_counts(tmp_path, system):
    assert usable_cores(tmp_path) == 8


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("quota", "cores"), [(200_000, 2), (150_000, 1), (50_000, 1), (1_600_000, 8)])
def test_a_quota_of_time_counts_in_whole_cores(system, version, quota, cores):
    assert usable_cores(system(version, quota)) == cores


@pytest.mark.parametrize(("version", "quota"), [(1, -1), (2, "max")])
def test_no_quota(system, version, quota):
    assert usable_cores(system(version, quota)) == 8
