"""The processes of a run: from flags, from JAX's variables, or from a cluster's; a run without any is one process."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenswift_jax.errors import UserError

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
GIVEN = "given"
"""The source of values that a caller gives."""
_DEVICES = "JAX_LOCAL_DEVICE_IDS"
# For each kind of cluster, the variables of the number of processes and of this one's.
_CLUSTERS = {
    "SLURM": ("SLURM_NTASKS", "SLURM_PROCID", ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_LOCALID")),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", ("OMPI_MCA_orte_hnp_uri",)),
}


@dataclass(frozen=True)
class Cluster:
    """The processes of a run.

    Attributes:
      count: how many.
      number: this one's, from 0.
      address: host and port of process 0; None: JAX finds it in the cluster's variables.
      source: where the values come from, for a person.
    """

    count: int
    number: int
    address: str | None
    source: str


def find_cluster(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """The processes that flags or the environment name; None: this process is alone.

    Flags come first, then JAX's own variables, then those of SLURM and Open MPI if they count several tasks, then those
    of a TPU with several workers. A shell inside a SLURM job has a count of its own, but no task, and is alone; so is a
    process with `num_processes` 1 and no other flag, wherever it runs.

    Raises:
      UserError: one of the values is missing, malformed or out of range.
    """
    names = ("coordinator", "num_processes", "process_id")
    given = (coordinator, num_processes, process_id)
    if given == (None, 1, None):
        return None
    if any(value is not None for value in given):
        absent = [name for name, value in zip(names, given, strict=True) if value is None]
        if absent:
            raise UserError(f"several processes need coordinator, num_processes and process_id; {absent[0]} is missing",
                            arguments=(*names, absent[0]))  # fmt: skip
        return _checked(given, GIVEN)
    if ADDRESS in environment:
        counted = [_whole(environment, name) for name in (COUNT, NUMBER)]
        if None not in counted:
            return _checked((environment[ADDRESS], *counted), "JAX's variables")
        for name, (count, number, _) in _CLUSTERS.items():
            counted = [_whole(environment, variable) for variable in (count, number)]
            if None not in counted:
                return _checked((environment[ADDRESS], *counted), f"{ADDRESS} and {name}")
        raise UserError(f"{ADDRESS} is set, and {COUNT} and {NUMBER} are missing; set them too, or unset it")
    for name, (count, number, needed) in _CLUSTERS.items():
        total, own = _whole(environment, count), _whole(environment, number)
        if total is not None and own is not None and total > 1 and all(one in environment for one in needed):
            return _checked((None, total, own), name)
    workers = [one for one in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if one]
    own = _whole(environment, "TPU_WORKER_ID")
    if len(workers) > 1 and own is not None:
        return _checked((None, len(workers), own), "the TPU's variables")
    return None


def joined(cluster: Cluster) -> None:
    """Connects this process with the others; call it before JAX has looked for devices.

    Raises:
      UserError: they do not all come in time, or process 0 cannot be reached.
    """
    import jax

    from tokenswift_jax.parallel.mesh import give_threads

    give_threads()
    # The programs of a CPU need an implementation for several processes; on other devices this has no effect.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    known: dict[str, Any] = {} if cluster.address is None else {"coordinator_address": cluster.address}
    if cluster.source in (GIVEN, "JAX's variables"):
        known |= {"num_processes": cluster.count, "process_id": cluster.number}
        if _DEVICES not in os.environ:  # else JAX gives one GPU to each task of SLURM
            known["cluster_detection_method"] = "deactivate"
    try:
        jax.distributed.initialize(**known, initialization_timeout=300, shutdown_timeout_seconds=60)
    except RuntimeError as error:
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"process {cluster.number} of {cluster.count}{_shown(cluster.source)} has not met the others at "
            f"{cluster.address or 'the address of the cluster'}: {reason}"
        ) from None


def gpus_here(environment: Mapping[str, str]) -> list[str]:
    """NVIDIA's GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; [] where JAX may use CPUs alone."""
    if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [one for one in visible.split(",") if one]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def tasks_here(environment: Mapping[str, str]) -> int:
    """Processes of the run on this machine, as SLURM and Open MPI count them."""
    text = environment.get("SLURM_TASKS_PER_NODE") or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") or "1"
    first = text.split(",")[0].split("(")[0]
    return int(first) if re.fullmatch("[0-9]{1,9}", first) else 1


def idle_devices(cluster: Cluster, used: int, present: int) -> str | None:
    """A line about devices of this machine that no process may use; None if there are none.

    JAX gives each task of SLURM and Open MPI the one GPU of the task's number on its machine.

    Args:
      cluster: the processes.
      used: devices of all processes on this machine.
      present: devices that the machine has.
    """
    if cluster.source not in _CLUSTERS or used >= present:
        return None
    return (
        f"this machine has {present} GPUs, and its processes were given {used}: JAX gives one to each task of "
        f"{cluster.source}; start {present} tasks a machine, or set {_DEVICES}=0,1,... for a task that uses several"
    )


def _checked(values: tuple, source: str) -> Cluster:
    address, count, number = values
    host, _, port = (address or "host:1").rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise UserError(
            f"coordinator {address:.200} is no host and port such as 10.0.0.1:1234", arguments=("coordinator",)
        )
    if count < 1 or not 0 <= number < count:
        raise UserError(
            f"process_id {number} of num_processes {count}{_shown(source)}: numbers run from 0 to {max(count - 1, 0)}",
            arguments=("process_id", "num_processes"),
        )
    return Cluster(count, number, address, source)


def _shown(source: str) -> str:
    """The source for a message, which names the arguments themselves if a caller gave them."""
    return "" if source == GIVEN else f" ({source})"


def _whole(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,9}", text):
        raise UserError(f"{name} is {text!r:.80}; it must be a whole number of at most 9 digits")
    return int(text)
