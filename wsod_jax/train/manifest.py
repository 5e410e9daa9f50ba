"""Checksums of a folder's files, so that damage is found before anything is read from it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence

from etils import epath

MANIFEST = "manifest.json"
_BLOCK = 1 << 24  # bytes


def write_manifest(folder: epath.Path) -> None:
    """Store size and CRC-32 of every file below `folder` in its `manifest.json`.

    Written under another name first, so that a crash leaves either no manifest or a whole one.
    """
    entries = {name: _checksum(path) for name, path in _files(folder).items()}
    draft = folder / (MANIFEST + ".tmp")
    draft.write_text(json.dumps(entries, indent=1))
    draft.replace(folder / MANIFEST)


def find_damage(folder: epath.Path, *, parts: Sequence[str] | None = None) -> str | None:
    """Say what is wrong with a folder that `write_manifest` finished.

    Args:
      folder: the folder.
      parts: look only at these sub-folders; `None` looks at everything.

    Returns:
      The first damage found in words, or `None` if all files are as they were.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return f"writing it was never finished (no {MANIFEST})"
    except ValueError:
        return f"its {MANIFEST} is not readable"
    for name, expected in sorted(entries.items()):
        if parts is not None and name.split("/")[0] not in parts:
            continue
        path = folder / name
        if not path.exists():
            return f"its file {name} is missing"
        if _checksum(path) != expected:
            return f"its file {name} was changed or cut short"
    return None


def _files(folder: epath.Path) -> dict[str, epath.Path]:
    found: dict[str, epath.Path] = {}
    waiting = [folder]
    while waiting:
        for path in waiting.pop().iterdir():
            if path.is_dir():
                waiting.append(path)
            elif not path.name.startswith(MANIFEST):
                found[str(path.relative_to(folder))] = path
    return found


def _checksum(path: epath.Path) -> list[int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]
