"""What the surroundings say: torchrun or SLURM, devices, threads. Nothing else in the project reads the environment."""

import logging
import os
import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from fedsim.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from fedsim.transport import Workers


def global_rank() -> int:
    """Returns this process's rank, before anything is launched."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0") if _under_srun() else "0"))


def refuse_workers(command: str) -> None:
    """Refuses a command that starts runs of its own where torchrun or srun started several processes of it.

    Args:
        command: its name.

    Raises:
        ConfigurationError: they did.
    """
    local, nodes = _processes()
    if local * nodes > 1:
        raise ConfigurationError(
            f"{local * nodes} workers run fedsim {command}, which starts runs of its own; start it once, without "
            "torchrun or srun (--jobs runs several at a time, fedsim sweep --slurm an array)"
        )


def visible_gpus() -> list[str]:
    """Names the GPUs that this process may use, as CUDA_VISIBLE_DEVICES does; torch stays away from all of them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = given.split(",") if given is not None else map(str, range(torch.cuda.device_count()))
    return [name.strip() for name in found if name.strip()]


def use_gpu(name: str) -> None:
    """Has this process, which has touched none yet, see one GPU alone."""
    os.environ["CUDA_VISIBLE_DEVICES"] = name


def with_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment with some variables more, for a command to be called."""
    return {**os.environ, **variables}


def start_workers(
    accelerator: str, precision: str, threads: int, timeout_seconds: float = 1800
) -> "tuple[Fabric, Workers]":
    """Joins the processes that torchrun or srun started, or stays alone.

    Args:
        accelerator: auto, cpu or cuda.
        precision: as Fabric names it.
        threads: CPU threads of this worker, set before any tensor work.
        timeout_seconds: how long a worker waits for the others. It must outlast the difference between the slowest and
            the fastest worker of a round; a worker that dies is noticed at once, only a lost link takes this long.

    Returns:
        The launched Fabric, for device and autocast, and the workers.

    Raises:
        ConfigurationError: there are fewer GPUs than workers on this host, or none where cuda was asked for.
    """
    import torch
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    from fedsim.transport import Workers

    torch.set_num_threads(threads)
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a banner of ranks tells users nothing
    local, nodes = _processes()
    gpu = accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available())
    found = torch.cuda.device_count()
    if gpu and not found:
        raise ConfigurationError("accelerator is cuda, but torch finds no GPU on this host; give --accelerator cpu")
    if gpu and found < local:
        raise ConfigurationError(
            f"{local} workers on this host but {found} GPUs; start as many workers as GPUs, or give --accelerator cpu"
        )
    strategy: str | DDPStrategy = "auto"
    if local * nodes > 1:
        # Only its process group is used: clients are independent, so nothing is wrapped in DDP.
        timeout = timedelta(seconds=timeout_seconds)
        strategy = DDPStrategy(process_group_backend="nccl" if gpu else "gloo", timeout=timeout)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The `srun` command is available")  # so is torchrun
        fabric = Fabric(
            accelerator="cuda" if gpu else "cpu", devices=local, num_nodes=nodes, strategy=strategy, precision=precision
        )
    fabric.launch()
    # Under torchrun a Fabric with other numbers would silently run independent copies.
    if fabric.world_size != int(os.environ.get("WORLD_SIZE", local * nodes)):
        raise ConfigurationError(
            f"{os.environ['WORLD_SIZE']} processes were started but {fabric.world_size} found each other; "
            "start them with torchrun or srun"
        )
    return fabric, Workers(fabric.global_rank, fabric.world_size, fabric.device)


def stop_workers() -> None:
    """Leaves the process group, if there is one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _processes() -> tuple[int, int]:
    """Workers on this host, and hosts."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    if _under_srun():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return 1, 1


def _under_srun() -> bool:
    """Whether srun started this process as one of its tasks, and not just the batch script that it runs in."""
    return "SLURM_NTASKS" in os.environ and "SLURM_STEP_ID" in os.environ and "RANK" not in os.environ
