"""The processes of a run, as flags and variables name them: a cluster only where there is one."""

import pytest

from tokenswift_jax.cli.flags import parse
from tokenswift_jax.errors import UserError
from tokenswift_jax.processes.cluster import GIVEN, Cluster, find_cluster, gpus_here, idle_devices, tasks_here

JAX = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "16", "SLURM_PROCID": "9"}
SLURM |= {"SLURM_LOCALID": "1"}
OMPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_MCA_orte_hnp_uri": "x"}


def shell(variables, **changed):
    return {name: value for name, value in (variables | changed).items() if value is not None}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (JAX, Cluster(4, 3, "10.0.0.1:1234", "JAX's variables")),
        (SLURM, Cluster(16, 9, None, "SLURM")),
        (SLURM | JAX, Cluster(4, 3, "10.0.0.1:1234", "JAX's variables")),
        (shell(SLURM, SLURM_NTASKS="1", SLURM_PROCID="0"), None),  # a shell of salloc
        (shell(SLURM, SLURM_STEP_NODELIST=None), None),  # a batch script, before srun
        (OMPI, Cluster(2, 1, None, "Open MPI")),
        (
            shell(SLURM, JAX_COORDINATOR_ADDRESS="n1:80"),
            Cluster(16, 9, "n1:80", "JAX_COORDINATOR_ADDRESS and SLURM"),
        ),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, Cluster(2, 1, None, "the TPU's variables")),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
    ],
)
def test_a_cluster_only_where_there_is_one(environment, expected):
    assert find_cluster(environment=environment) == expected


def test_flags_come_first():
    assert find_cluster(None, 1, None, SLURM) is None
    assert find_cluster("h:1", 2, 0, SLURM) == Cluster(2, 0, "h:1", GIVEN)


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({}, ("h:1", 2, None), "process_id is missing"),
        ({}, (None, 2, 0), "coordinator is missing"),
        ({}, ("h:1", 2, 2), "process_id 2 of num_processes 2: numbers run from 0 to 1"),
        ({}, ("h", 2, 1), "coordinator h is no host and port such as"),
        ({}, ("h:port", 2, 1), "coordinator h:port is no host and port"),
        ({}, (":80", 2, 1), "is no host and port"),
        (shell(JAX, JAX_PROCESS_ID=None), (None,) * 3, "JAX_NUM_PROCESSES and JAX_PROCESS_ID are missing"),
        (shell(JAX, JAX_PROCESS_ID="x"), (None,) * 3, "JAX_PROCESS_ID is 'x'; it must be a whole number"),
    ],
)
def test_values_that_are_none(environment, flags, message):
    with pytest.raises(UserError, match=message):
        find_cluster(*flags, environment)


def test_the_one_gpu_that_jax_gives_a_task_of_slurm_is_explained():
    cluster = find_cluster(environment=SLURM)
    line = idle_devices(cluster, used=1, present=8)
    assert "has 8 GPUs, and its processes were given 1: JAX gives one to each task of SLURM; start 8 tasks" in line
    assert "JAX_LOCAL_DEVICE_IDS=0,1,..." in line
    assert idle_devices(cluster, used=8, present=8) is None
    assert idle_devices(find_cluster(environment=JAX), used=1, present=8) is None
    assert tasks_here({"SLURM_TASKS_PER_NODE": "8(x2),4"}) == 8


def test_the_gpus_of_a_process():
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "4,5"}) == ["4", "5"]
    assert gpus_here({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "4", "JAX_PLATFORMS": "cpu"}) == []


def test_other_processes_leave_files_to_process_0(tmp_path):
    words = ["--prompt-file", "absent", "--journal", str(tmp_path / "no" / "j"), "--resume", "--mesh", "model=2"]
    flags = ["--coordinator", "h:1", "--num-processes", "2", "--process-id"]
    assert parse([*words, *flags, "1"]).cluster.number == 1
    with pytest.raises(UserError, match="there is no folder"):
        parse([*words, *flags, "0"])


def test_workers_of_documents_are_no_cluster(tmp_path, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert parse(["--documents", "in", "--output", "out"]).cluster is None
    assert parse(["--prompt", "x"]).cluster.source == "SLURM"
