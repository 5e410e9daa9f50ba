"""Training with several processes: joining them, checks that they agree, and work done by the first one."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from wsod_jax.errors import ConfigError, PeerError
from wsod_jax.train.identity import dotted
from wsod_jax.train.sharding import by_rows, fetch, replicated

SHUTDOWN_TIMEOUT = 60  # seconds that a finished process waits for the others before they are ended
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes of a run, if there are any.

    The three arguments, or the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, take
    precedence. Otherwise Slurm, Open MPI, an indexed Kubernetes job or Cloud TPU are detected by their
    environment, and JAX asks them. Does nothing for a single process. Call it before anything uses a device.

    Args:
      coordinator: "address:port" of process 0, which listens there; the same in all processes.
      num_processes: number of processes.
      process_id: number of this process, from 0.

    Raises:
      ConfigError: if only some of the three are given, they are invalid, or the others cannot be reached.
    """
    given = (coordinator, num_processes, process_id)
    if given == (None, None, None):
        given = tuple(os.environ.get(name) for name in _VARIABLES)
    if given == (None, None, None):
        launcher = _launcher()
        if launcher is not None:
            _join(f"started by {launcher}", {})
        return
    needed = (
        "several processes need the address of process 0 (host:port), their number and this one's id: flags "
        f"--coordinator, --num_processes and --process_id, or the variables {', '.join(_VARIABLES)}"
    )
    if None in given:
        raise ConfigError(f"{needed}; give all three or none; found {', '.join(map(str, given))}")
    address = str(given[0])
    try:
        count, number = int(given[1]), int(given[2])
    except ValueError:
        count = number = -1
    if not 0 <= number < count or not address.rpartition(":")[2].isdigit():
        raise ConfigError(
            f"{needed}; found {address}, {given[1]}, {given[2]}, but ids are 0 to the number minus 1, and the "
            "address ends with a port"
        )
    if count > 1:
        options = {"coordinator_address": address, "num_processes": count, "process_id": number}
        _join(f"as process {number} of {count} at {address}", options)


def _join(how: str, options: dict[str, Any]) -> None:
    if jax.config.jax_platforms == "cpu":
        check_own_name()
    try:
        jax.distributed.initialize(**options, shutdown_timeout_seconds=SHUTDOWN_TIMEOUT)
    except Exception as error:
        raise ConfigError(
            f"cannot join the other processes {how}: {error}. Start all of them within 5 minutes, with an address "
            "that each can reach and a port that is free in process 0, before anything else uses JAX"
        ) from error


def check_own_name() -> None:
    """Raise `ConfigError` if this machine's name has no address, by which processes on CPUs find each other."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise ConfigError(
            f"the name of this machine, {name!r}, has no address ({error}), by which processes on CPUs find each "
            f"other; add a line such as '127.0.1.1 {name}' to /etc/hosts"
        ) from None


def _launcher() -> str | None:
    """Return the launcher that started several processes, by the variables that JAX's detection reads too."""
    env = os.environ
    if "SLURM_JOB_ID" in env and "SLURM_STEP_NODELIST" in env:
        return "Slurm" if _several(env.get("SLURM_NTASKS")) else None
    if "OMPI_MCA_orte_hnp_uri" in env:
        return "Open MPI" if _several(env.get("OMPI_COMM_WORLD_SIZE")) else None
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "Kubernetes"
    if env.get("JAX_PLATFORMS", "tpu").startswith("tpu") and importlib.util.find_spec("libtpu"):
        hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
        if "," in hosts or _several(env.get("MEGASCALE_NUM_SLICES")) or _on_google_tpu():
            return "Cloud TPU"
    return None


def _several(count: str | None) -> bool:
    return count is not None and count.isdigit() and int(count) > 1


def _on_google_tpu() -> bool:
    """Return whether this is a TPU machine whose host list must be asked of Google's metadata server."""
    maker = Path("/sys/class/dmi/id/product_name")
    devices = any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))
    known = "TPU_SKIP_MDS_QUERY" in os.environ or "TPU_WORKER_HOSTNAMES" in os.environ
    return devices and not known and maker.exists() and "Google" in maker.read_text()


def is_first() -> bool:
    """Return whether this process writes logs and images: the first of several, or the only one."""
    return jax.process_index() == 0


def abandon(why: str) -> NoReturn:
    """Stop because another process failed.

    The devices may wait forever for the failed process in a running update, so the interpreter is forced to exit
    with status 1 once the error is reported.

    Raises:
      PeerError: with `why`.
    """
    atexit.register(_end)  # runs before JAX's handlers, which were registered earlier
    raise PeerError(why)


def _end() -> None:
    with contextlib.suppress(Exception):
        jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def refuse_several(what: str) -> None:
    """Raise for work that needs a single process.

    Args:
      what: subject of the message, such as "evaluation".

    Raises:
      ConfigError: if there are several processes, or a launcher started several.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"{what} runs in one process, but this one is number {jax.process_index()} of "
            f"{jax.process_count()}; start a single process for it"
        )
    launcher = "JAX_NUM_PROCESSES" if _several(os.environ.get("JAX_NUM_PROCESSES")) else _launcher()
    if launcher in ("JAX_NUM_PROCESSES", "Slurm", "Open MPI"):  # each of which starts copies
        raise ConfigError(
            f"{what} runs in one process, but {launcher} started several; start a single one for it"
        )


def check_same(name: str, text: str) -> None:
    """Check that all processes have the same text, such as their configuration.

    Args:
      name: of the text, for the message.
      text: JSON, whose keys are compared one by one, or any other text.

    Raises:
      ConfigError: in every process, naming those that differ from process 0 and in which keys.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    if (digests == digests[0]).all():
        return
    texts = _gathered(text)
    lines = [
        f"  process {number}: {_difference(texts[0], other)}"
        for number, other in enumerate(texts)
        if other != texts[0]
    ]
    raise ConfigError(
        f"the processes of this run have different {name}s; compared with process 0:\n"
        + "\n".join(lines[:8])
        + (f"\n  and {len(lines) - 8} more" if len(lines) > 8 else "")
        + "\nStart all of them with the same command and the same files"
    )


def by_first(what: str, act: Callable[[], None]) -> None:
    """Call a function in process 0 only; all processes wait for it.

    Args:
      what: for the message, as in "process 0 could not …".
      act: the function; its exceptions are raised in process 0.

    Raises:
      PeerError: in the other processes, if it raised.
    """
    if jax.process_count() == 1:
        act()
        return
    error = None
    if is_first():
        try:
            act()
        except Exception as caught:  # raised by `all_succeeded`, after the others know
            error = caught
    all_succeeded(what, error)


def all_succeeded(what: str, error: Exception | None) -> None:
    """Wait for all processes and continue only if none failed.

    Args:
      what: for the message, as in "process 3 could not …".
      error: of this process, or `None`.

    Raises:
      PeerError: if another one failed; `error` takes precedence.
    """
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.asarray(error is not None))
        texts = (
            _gathered("" if error is None else f"{type(error).__name__}: {error}")
            if failed.any()
            else []
        )
    if error is not None:
        raise error
    if jax.process_count() > 1 and failed.any():
        number = int(np.argmax(failed))
        raise PeerError(f"process {number} could not {what}: {texts[number]}")


def check_shared(folder: epath.Path) -> None:
    """Check that all processes see the same folder.

    Args:
      folder: exists, at least for process 0.

    Raises:
      ConfigError: in the processes that do not see it; `PeerError` in the others.
    """
    if jax.process_count() == 1:
        return
    number = int(multihost_utils.broadcast_one_to_all(np.asarray(secrets.randbits(30))))
    mark = folder / f".shared-{number}"
    by_first(f"write in {folder}", mark.touch)
    error = None
    if not mark.exists():
        error = ConfigError(
            f"process {jax.process_index()} does not see the files that process 0 writes in {folder}; the workdir "
            "must be on a disk or bucket that all of them share"
        )
    try:
        all_succeeded(f"find {folder}", error)
    finally:
        if is_first():
            mark.unlink()


class Votes:
    """The largest of the processes' numbers, known to all after the same update, without making the device wait.

    Each process casts a number before it dispatches an update; a tiny program queued before the update computes the
    maximum. It is read while the device runs the update, so reading waits only for the update before.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Prepare for the processes of a mesh."""
        self._layout = by_rows(mesh)
        self._largest = jax.jit(jax.numpy.max, out_shardings=replicated(mesh))
        self._devices = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)
        self._newest: jax.Array | None = None

    def cast(self, number: int) -> None:
        """Submit this process's number."""
        numbers = np.full(self._devices, number, np.int32)
        self._newest = self._largest(jax.make_array_from_process_local_data(self._layout, numbers))

    def count(self) -> int:
        """Return the largest number of the last vote."""
        return int(fetch(self._newest))


def _gathered(text: str) -> list[str]:
    """Return every process's text, in their order."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(data.size))
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def _difference(first: str, other: str) -> str:
    """Describe the keys in which two texts differ."""
    try:
        one, two = (dotted(json.loads(text)) for text in (first, other))
    except ValueError:
        lines = zip(first.splitlines() + [""], other.splitlines() + [""], strict=False)
        one, two = next(((a, b) for a, b in lines if a != b), (first, other))
        return f"{two[:200]!r} instead of {one[:200]!r}"
    names = [name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name)]
    parts = [f"{name} is {two.get(name)!r} instead of {one.get(name)!r}" for name in names[:6]]
    return "; ".join(parts) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
