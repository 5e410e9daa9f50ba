"""Marks on the fields of option classes: what a value may be, and what a trained run may change.

A class of options is a frozen dataclass (or a flax module) whose fields carry their default, their type and, as
`Annotated[type, mark, ...]`, these marks. `config.py` reads them; nothing else needs to.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Lowest and highest number allowed, both included; of a tuple it bounds every number in it."""

    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Choice:
    """The field is a union: the entry `key` of its section names a class in `table` (methods, backbones, ...)."""

    table: str
    key: str = "name"


class Mark(enum.Enum):
    """What may change without making another run of it.

    TEST: how a trained detector is tested; `--set` changes it for one command.
    LOCATION: where files lie. `--set` changes it, and a resumed run may.
    RESUME: a resumed run may change it.
    """

    TEST = "test"
    LOCATION = "location"
    RESUME = "resume"


SHARE = Range(0, 1)
COUNT = Range(1)
NOT_NEGATIVE = Range(0)
POSITIVE = Range(1e-12)
BELOW_ONE = Range(0, 0.999999999)
DROPOUT = Range(0, 0.999)
