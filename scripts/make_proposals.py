"""Make proposals: wsod_jax/commands/make_proposals.py, which --help describes."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for a checkout that is not installed

from wsod_jax.commands.make_proposals import main

if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main())
