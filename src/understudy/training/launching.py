"""The processes of a run: who starts them, and which one writes.

A rank is what Lightning's trainer makes of the processes that a config asks for. Variables such as ``LOCAL_RANK`` that
a launcher or scheduler has left in the environment for something else have no effect.
"""

import os

import lightning.pytorch as L
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.utilities.rank_zero import rank_zero_only

LAUNCHERS = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
"""Launchers that Lightning recognises by variables of their own."""


class OneProcess(LightningEnvironment):
    """The environment of a run on one device; it reads no variable."""

    @property
    def creates_processes_externally(self) -> bool:
        """There is nothing to start."""
        return True

    @property
    def main_address(self) -> str:
        """This machine."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """A free port."""
        if self._main_port == -1:
            self._main_port = find_free_network_port()
        return self._main_port

    def local_rank(self) -> int:
        """The only process on this machine."""
        return 0

    def node_rank(self) -> int:
        """The only machine."""
        return 0


class OwnProcesses(LightningEnvironment):
    """The environment of processes that Lightning starts on each machine.

    Args:
        processes: number of processes on all machines together.
        num_nodes: number of machines.
    """

    def __init__(self, processes: int, num_nodes: int):
        super().__init__()
        self.num_nodes = num_nodes
        # Lightning sets all of them for the processes that it starts, as does a user who starts each by hand.
        complete = {"LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
        self.started = complete and os.environ.get("WORLD_SIZE") == str(processes)

    @property
    def creates_processes_externally(self) -> bool:
        """Return whether this process was started as one of several."""
        return self.started

    def local_rank(self) -> int:
        """Return the number of this process on its machine."""
        return super().local_rank() if self.started else 0

    def node_rank(self) -> int:
        """Return the number of this machine."""
        return super().node_rank() if self.num_nodes > 1 else 0


def cluster_environment(devices: int, num_nodes: int) -> ClusterEnvironment | None:
    """Return the environment for a number of devices on each machine; None leaves the choice to Lightning."""
    processes = devices * num_nodes
    if processes == 1:
        return OneProcess()
    found = next((launcher for launcher in LAUNCHERS if launcher.detect()), None)
    # A job of SLURM with one task and several GPUs: the processes of this machine are Lightning's to start.
    not_by_slurm = num_nodes == 1 and os.environ.get("SLURM_NTASKS") != str(processes)
    if found is None or (found is SLURMEnvironment and not_by_slurm):
        return OwnProcesses(processes, num_nodes)
    return None


def adopt_rank(trainer: L.Trainer) -> None:
    """Make the trainer's rank that of this process, for Lightning's own messages, too."""
    rank_zero_only.rank = trainer.global_rank  # ty: ignore[missing-attribute]


def is_first_process() -> bool:
    """Return whether this process writes files and prints: the only process of the last trainer, or its first."""
    return rank_zero_only.rank == 0  # ty: ignore[missing-attribute]
