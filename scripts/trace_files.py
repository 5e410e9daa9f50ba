"""Count the files of a training run: wsod_jax/commands/trace_files.py, which --help describes."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("wsod_jax") is None:  # not installed: this checkout's
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsod_jax.commands.trace_files import main

if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main())
