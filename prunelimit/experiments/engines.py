"""Where the runs of a sweep are computed: in processes of this machine, or on a Ray cluster.

An engine takes functions of this library with their arguments, in order of their value, and gives back what they return. Runs are
found again by the hash of their specs, so whatever is lost with a process is only time: the next call goes on.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

import torch

from prunelimit.errors import PruneLimitError

#: Oldest Ray whose interface is used here.
RAY = "ray>=2.40"


class Engine(Protocol):
    """Computes functions in other processes; a context manager.

    Attributes:
        remote: Whether those processes may be on machines that share no files with this one. What they compute must then be
            returned, and written here.
    """

    remote: ClassVar[bool]

    def __enter__(self) -> Self:
        """Start or join the processes."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End what was started; after an error, without waiting for what has not begun."""
        ...

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have a function computed, after those submitted before; a job among the arguments stands for its result.

        Args:
            function: A function that can be imported there.
            *arguments: What it is called with.

        Returns:
            The job.
        """
        ...

    def wait(self, jobs: Collection[Any]) -> list[Any]:
        """Wait until some job has ended, well or badly, and return those that have."""
        ...

    def result(self, job: Any) -> Any:
        """Return what a job that has ended gave, or raise what it raised."""
        ...


@dataclasses.dataclass
class LocalEngine:
    """Processes on this machine, which share its cache.

    Args:
        workers: How many.

    Raises:
        PruneLimitError: If there is none.
    """

    remote: ClassVar[bool] = False
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise PruneLimitError(f"workers={self.workers!r} must be at least 1.")

    def __enter__(self) -> Self:
        """Start the processes, which share the threads of this one."""
        threads = max(1, torch.get_num_threads() // self.workers)
        context = multiprocessing.get_context("spawn")
        self._pool = concurrent.futures.ProcessPoolExecutor(self.workers, context, torch.set_num_threads, (threads,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End the processes once their runs have ended."""
        self._pool.shutdown(cancel_futures=kind is not None)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future[Any]:
        """Have a function computed; see :class:`Engine`."""
        known = [one.result() if isinstance(one, concurrent.futures.Future) else one for one in arguments]
        return self._pool.submit(function, *known)

    def wait(self, jobs: Collection[concurrent.futures.Future[Any]]) -> list[concurrent.futures.Future[Any]]:
        """Wait until some job has ended; see :class:`Engine`."""
        return list(concurrent.futures.wait(jobs, return_when=concurrent.futures.FIRST_COMPLETED).done)

    def result(self, job: concurrent.futures.Future[Any]) -> Any:
        """Return what a job gave; see :class:`Engine`."""
        return job.result()


@dataclasses.dataclass
class RayEngine:
    """A Ray cluster: each run is a task, started again elsewhere if its process or machine is lost.

    Each machine of the cluster needs this version of the library and the data; nothing else has to be shared.

    Args:
        address: Of the cluster, as ``ray.init`` takes it; by default ``$RAY_ADDRESS``. Without either, Ray is started on this
            machine, and ended in the end. A program that has called ``ray.init`` itself is left its own.
        workers: Runs at once where Ray is started here; by default as many as there are cores for.
        cpus: Cores per run, and its threads.
        gpus: GPUs per run; a fraction if several runs share one. Their memory is shared as well, and not guarded.
        retries: How often a run is started again whose process was lost; -1 for no end.

    Raises:
        PruneLimitError: If an argument cannot be used, Ray is not installed, or the cluster does not answer.
    """

    remote: ClassVar[bool] = True
    address: str | None = None
    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 3

    def __post_init__(self) -> None:
        if self.cpus <= 0:
            raise PruneLimitError(f"cpus={self.cpus!r} must be positive: it is the number of cores per run.")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise PruneLimitError(
                f"gpus={self.gpus!r} must be a fraction of one GPU, or a whole number of them, per run."
            )
        if self.retries < -1:
            raise PruneLimitError(f"retries={self.retries!r} must be at least 0, or -1 for no end.")
        if self.workers is not None and self.workers < 1:
            raise PruneLimitError(f"workers={self.workers!r} must be at least 1.")

    def __enter__(self) -> Self:
        """Join the cluster, or start Ray here."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about the user leaves the machine
        try:
            self._ray = importlib.import_module("ray")
        except ImportError as error:
            raise PruneLimitError(f"engine='ray' needs Ray, which is not here: pip install '{RAY}'") from error
        self._own = not self._ray.is_initialized()
        if self._own:
            self._join()
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": self.retries}
        self._task = self._ray.remote(**options)(_call)
        self._open: set[Any] = set()
        return self

    def _join(self) -> None:
        """Call ``ray.init``."""
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        address = self.address or os.environ.get("RAY_ADDRESS")
        try:
            if address:
                self._ray.init(address, **quiet)
            else:
                cores = None if self.workers is None else max(1, int(self.workers * self.cpus))
                self._ray.init("local", num_cpus=cores, include_dashboard=False, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise PruneLimitError(
                f"ray_address={address!r} cannot be joined ({error}): check that `ray status` answers there, and that "
                "Ray and Python have the same versions on all machines."
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Take back what has not ended, and leave the cluster; Ray is ended where it was started here."""
        for job in self._open:
            self._ray.cancel(job, force=True)
        if self._own:
            self._ray.shutdown()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have a function computed; a job among the arguments goes from machine to machine, not through this one."""
        job = self._task.remote(_version(), max(1, int(self.cpus)), function, *arguments)
        self._open.add(job)
        return job

    def wait(self, jobs: Collection[Any]) -> list[Any]:
        """Wait until some job has ended; see :class:`Engine`."""
        ended, _ = self._ray.wait(list(jobs), num_returns=1, fetch_local=False)
        self._open.difference_update(ended)
        return ended

    def result(self, job: Any) -> Any:
        """Return what a job gave; see :class:`Engine`."""
        lost = self._ray.exceptions
        try:
            return self._ray.get(job)
        except lost.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, PruneLimitError) else error) from None
        except lost.RayError as error:
            raise PruneLimitError(
                f"engine='ray': a run was lost {self.retries + 1} times ({type(error).__name__}), most likely for want of "
                "memory: give a run more cores (cpus), so that fewer run side by side. The next call goes on."
            ) from error


def _version() -> str:
    import prunelimit

    return prunelimit.__version__


def _call(version: str, threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Compute a function in a process of a cluster."""
    if version != _version():
        raise PruneLimitError(
            f"engine='ray': a machine of the cluster has prunelimit {_version()}, and this one {version}: install the same "
            "version on all of them."
        )
    torch.set_num_threads(threads)
    return function(*arguments)


def run_all(
    engine: Engine, tasks: Iterable[tuple[Any, Callable[..., Any], tuple[Any, ...]]]
) -> Iterator[tuple[Any, Any]]:
    """Compute functions that do not need each other.

    Args:
        engine: Where; entered already.
        tasks: What to call each, its function and its arguments; the most valuable first.

    Yields:
        What it was called, and its result, in the order in which they end.
    """
    waiting = {engine.submit(function, *arguments): key for key, function, arguments in tasks}
    while waiting:
        for job in engine.wait(waiting):
            yield waiting.pop(job), engine.result(job)


def to_wall_clock(deadline: float | None) -> float | None:
    """Turn a value of the monotonic clock, which each machine has its own of, into seconds since the epoch."""
    return None if deadline is None else time.time() + deadline - time.monotonic()


def from_wall_clock(ends: float | None) -> float | None:
    """Turn seconds since the epoch into a value of this machine's monotonic clock."""
    return None if ends is None else time.monotonic() + ends - time.time()
