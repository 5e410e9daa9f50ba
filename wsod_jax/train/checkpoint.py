"""Checkpoints: atomic, verified by checksums, self-describing; kept by a policy that never deletes the newest."""

from __future__ import annotations

import errno
import json
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from wsod_jax.errors import ConfigError, DataError
from wsod_jax.train.distributed import by_first, check_shared, is_first
from wsod_jax.train.identity import check_format, compare_layouts, compare_runs
from wsod_jax.train.state import TrainState

MANIFEST = "manifest.json"
_ITEMS = ("weights", "optimizer", "metadata")
_BLOCK = 1 << 24  # bytes


class LoadedCheckpoint(NamedTuple):
    """Parameters, extras, and the metadata with "step"."""

    params: dict
    extras: dict
    metadata: dict


class Checkpoints:
    """The checkpoints of one run, one folder per step under `folder`.

    A folder `<step>` contains `weights/` (params, extras, average), `optimizer/`, `metadata/metadata`
    (JSON) and `manifest.json` (a checksum of every file, written last). Writes are atomic. Opening
    verifies the newest checkpoint; a damaged or unfinished one is renamed `damaged-<step>` with a
    warning, and the one before is used. Several processes open the same shared folder and call every
    method together.
    """

    def __init__(
        self,
        folder: str | epath.Path,
        metadata: Mapping[str, Any],
        *,
        keep_period: int | None = None,
        best: str | None = None,
        may_differ: Sequence[str] = (),
    ) -> None:
        """Open or create the folder; raise if it belongs to another run.

        The newest two checkpoints and that of step 0 are always kept.

        Args:
          folder: local path or URL.
          metadata: from `run_metadata`.
          keep_period: also keep the steps divisible by this.
          best: name of a validation score; also keep the checkpoint with the largest one.
          may_differ: dotted names, such as "config.total_steps", that a resumed run may change; a
            name includes everything below it.

        Raises:
          ConfigError: if the newest checkpoint was written by another method, configuration, seed,
            split or class list.
          DataError: if there are checkpoints and every one is damaged.
        """
        self.folder = epath.Path(folder)
        self._metadata = json.loads(json.dumps(dict(metadata)))  # as read back
        self._best = best
        by_first(f"open {self.folder}", self._make_ready)
        check_shared(self.folder)
        steps = _numbered(self.folder)
        if steps:
            stored = _read_metadata(self.folder / str(steps[-1]))
            compare_runs(stored, self._metadata, may_differ, self.folder)
        policies = checkpoint_managers
        keep = [policies.LatestN(2), policies.CustomSteps([0])]
        if keep_period is not None:
            keep.append(policies.EveryNSteps(keep_period))
        if best is not None:
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda scores: scores[best],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self.folder.resolve(),
            item_names=_ITEMS,
            options=ocp.CheckpointManagerOptions(
                # Save synchronously: the next update overwrites the donated state.
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
                preservation_policy=policies.AnyPreservationPolicy(keep),
            ),
        )

    def _make_ready(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _set_damaged_aside(self.folder)

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """The newest step, or `None`."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, scores: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint unless the step has one, then delete those that no rule keeps.

        Args:
          step: updates done.
          state: read, not kept.
          scores: validation scores, including the declared best score; or `None`.

        Raises:
          ConfigError: if `scores` lacks the declared best score.
          OSError: if it cannot be written (disk full, no permission, quota); the earlier ones remain.
        """
        if step in self.steps:
            return
        if scores is not None and self._best is not None and self._best not in scores:
            raise ConfigError(
                f"the best checkpoint is chosen by {self._best!r}, but validation returned {sorted(scores)}; "
                "name one of these"
            )
        weights = {"params": state.params, "extras": state.extras}
        if state.ema is not None:
            weights["ema"] = state.ema
        metadata = {**self._metadata, "step": step, "scores": dict(scores or {})}
        items = ocp.args.Composite(
            weights=ocp.args.StandardSave(weights),
            optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
            metadata=ocp.args.JsonSave(metadata),
        )
        try:
            numbers = None if scores is None else {k: float(v) for k, v in scores.items()}
            self._manager.save(step, args=items, metrics=numbers, force=True)
            what = f"finish the checkpoint of step {step}"
            by_first(what, lambda: write_manifest(self.folder / str(step)))
        except (OSError, ValueError) as error:
            if not _is_storage_error(error):
                raise
            if is_first():
                self._discard(step)
            raise OSError(_errno(error), self._save_failure(step, error)) from error

    def restore(self, state: TrainState) -> TrainState | None:
        """Return the newest checkpoint's state, bit for bit, with the sharding of `state`.

        Args:
          state: a state of the same layout (its values are not read), concrete or abstract with shardings.

        Returns:
          The restored state, or `None` if there is no checkpoint yet.

        Raises:
          ConfigError: if names, shapes or dtypes of parameters differ from the ones stored.
        """
        if self.latest is None:
            return None
        folder = self.folder / str(self.latest)
        weights = {"params": state.params, "extras": state.extras}
        if state.ema is not None:
            weights["ema"] = state.ema
        compare_layouts(_stored_layout(folder), weights, folder)
        loaded = _read(folder / "weights", weights)
        rest = _read(folder / "optimizer", {"step": state.step, "opt_state": state.opt_state})
        return TrainState(ema=loaded.pop("ema", None), **loaded, **rest)

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()

    def _discard(self, step: int) -> None:
        for path in self.folder.glob(f"{step}*"):
            if path.name == str(step) or path.name.startswith(f"{step}."):
                path.rmtree(missing_ok=True)
        self._manager.reload()

    def _save_failure(self, step: int, error: Exception) -> str:
        reason = "the disk is full" if _errno(error) == errno.ENOSPC else str(error)[:300]
        last = "none yet" if self.latest is None else f"step {self.latest}, intact"
        return (
            f"cannot save the checkpoint of step {step} in {self.folder}: {reason}. The last good "
            f"checkpoint: {last}. Free space (or correct permissions) and run the same command again: it "
            "resumes there"
        )


def load_checkpoint(
    path: str | epath.Path,
    *,
    step: int | None = None,
    weights: Literal["params", "ema"] | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> LoadedCheckpoint:
    """Read parameters, extras and metadata of a checkpoint; no optimizer or method is needed.

    Args:
      path: a step's folder, the folder of checkpoints, or a workdir that contains `checkpoints`.
      step: which step; `None` takes the newest (or the one that `path` names).
      weights: the trained parameters or their running average; `None` takes the method's choice for
        prediction (its metadata's "result").
      sharding: where to place the arrays; `None` uses the first local device.

    Returns:
      `LoadedCheckpoint`.

    Raises:
      DataError: if the checkpoint does not exist, is damaged, or has no running average.
    """
    folder = _step_folder(epath.Path(path), step)
    damage = find_damage(folder, parts=("weights", "metadata"))
    if damage is not None:
        raise DataError(f"checkpoint {folder} cannot be used: {damage}; choose another step")
    metadata = _read_metadata(folder)
    weights = metadata["result"] if weights is None else weights
    stored = _stored_layout(folder)
    if weights not in stored:
        raise DataError(
            f"checkpoint {folder} has {sorted(stored)} but no {weights!r}; the run kept no running average: load "
            "'params'"
        )
    place = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), stored)
    tree = _read(folder / "weights", wanted)
    return LoadedCheckpoint(tree[weights], tree["extras"], metadata)


def checkpoint_steps(path: str | epath.Path) -> list[int]:
    """Return the finished steps in a folder of checkpoints (or a workdir), ascending."""
    folder = epath.Path(path)
    folder = folder / "checkpoints" if (folder / "checkpoints").exists() else folder
    return [s for s in _numbered(folder) if (folder / str(s) / MANIFEST).exists()]


def write_manifest(folder: epath.Path) -> None:
    """Store size and CRC-32 of every file in `folder` in its `manifest.json`, atomically."""
    entries = {name: _checksum(path) for name, path in _files(folder).items()}
    draft = folder / (MANIFEST + ".tmp")
    draft.write_text(json.dumps(entries, indent=1))
    draft.replace(folder / MANIFEST)


def find_damage(folder: epath.Path, *, parts: Sequence[str] | None = None) -> str | None:
    """Compare a folder with its manifest.

    Args:
      folder: the folder.
      parts: check only these sub-folders; `None` checks everything.

    Returns:
      A description of the first damage, or `None` if all files are unchanged.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return f"its writing was never finished (no {MANIFEST})"
    except ValueError:
        return f"its {MANIFEST} is not readable"
    for name, expected in sorted(entries.items()):
        if parts is not None and name.split("/")[0] not in parts:
            continue
        path = folder / name
        if not path.exists():
            return f"its file {name} is missing"
        if _checksum(path) != expected:
            return f"its file {name} was changed or truncated"
    return None


def _step_folder(path: epath.Path, step: int | None) -> epath.Path:
    if path.name.isdigit() and (path / "weights").exists():
        if step is not None and step != int(path.name):
            raise DataError(
                f"{path} is step {path.name}, but step {step} was requested; give its parent folder"
            )
        return path
    steps = checkpoint_steps(path)
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise DataError(
            f"{path} has no {wanted} (steps found: {steps or 'none'}); give the workdir of a training run, its folder "
            "of checkpoints, or one step's folder"
        )
    root = path / "checkpoints" if (path / "checkpoints").exists() else path
    return root / str(steps[-1] if step is None else step)


def _numbered(folder: epath.Path) -> list[int]:
    if not folder.exists():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _set_damaged_aside(folder: epath.Path) -> None:
    """Rename damaged checkpoints, until the newest one is good."""
    damaged: dict[int, str] = {}
    for step in reversed(_numbered(folder)):
        damage = find_damage(folder / str(step))
        if damage is None:
            break
        damaged[step] = damage
    else:
        if damaged:
            reasons = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
            raise DataError(
                f"every checkpoint in {folder} is damaged ({reasons}); restore a copy, or delete the "
                "folder to start again from step 0"
            )
        return
    for worse, damage in damaged.items():
        aside = folder / f"damaged-{worse}"
        if aside.exists():
            aside.rmtree()
        (folder / str(worse)).rename(aside)
        warnings.warn(
            f"checkpoint {folder / str(worse)} cannot be used: {damage}. It was renamed to {aside}; "
            f"training resumes from step {step}",
            stacklevel=5,
        )


def _read_metadata(folder: epath.Path) -> dict:
    metadata = json.loads((folder / "metadata" / "metadata").read_text())
    check_format(metadata, folder)
    return metadata


def _read(folder: epath.Path, wanted: Any) -> Any:
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted
    )
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(folder.resolve(), target)


def _stored_layout(folder: epath.Path) -> dict:
    return ocp.StandardCheckpointHandler().metadata((folder / "weights").resolve()).tree


def _is_storage_error(error: Exception) -> bool:
    # The array store reports the system's error as text inside a ValueError.
    return isinstance(error, OSError) or "os_error_code" in str(error)


def _errno(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.ENOSPC if "No space left" in str(error) else errno.EIO


def _files(folder: epath.Path) -> dict[str, epath.Path]:
    files: dict[str, epath.Path] = {}
    folders = [folder]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir():
                folders.append(path)
            elif not path.name.startswith(MANIFEST):
                files[str(path.relative_to(folder))] = path
    return files


def _checksum(path: epath.Path) -> list[int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]
