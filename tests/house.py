"""The levels of the package's rooms, and their drawing in docs/architecture.md.

python -m tests.house    # draw it again
"""

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A room is a folder or a file of the package. It imports only from itself and from lower levels.
ROOMS = (
    ("types", "options", "errors"),
    ("ops", "viz", "files"),
    ("nn", "losses"),
    ("methods",),
    ("train", "data", "evaluation"),
    ("config", "presets", "convert"),
    ("build",),
    ("runs",),
    ("analysis",),
    ("commands", "__main__"),
)
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def drawing() -> str:
    """Return the levels, highest first: each room with the first sentence of its docstring."""
    lines = []
    for level, rooms in reversed(list(enumerate(ROOMS))):
        for number, room in enumerate(rooms):
            path = ROOT / "wsod_jax" / room / "__init__.py"
            name = f"{room}/" if path.exists() else f"{room}.py"
            path = path if path.exists() else ROOT / "wsod_jax" / f"{room}.py"
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            sentence = re.split(r"(?<=[.])\s", text.replace("\n", " "))[0].rstrip(".")
            start = f"{level if number == 0 else ' '}  {name:<13} "
            lines += textwrap.wrap(sentence, 115, initial_indent=start, subsequent_indent=" " * 17)
    return "\n".join(lines)


def main() -> None:
    """Put the drawing in the place of the old one."""
    path = ROOT / "docs" / "architecture.md"
    text = path.read_text(encoding="utf-8")
    old = re.search(r"(?<=```\n)9  .*?(?=\n```)", text, re.DOTALL)[0]
    path.write_text(text.replace(old, drawing()), encoding="utf-8")


if __name__ == "__main__":
    main()
