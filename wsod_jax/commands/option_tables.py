"""Write docs/options.md: every option of a configuration with its type, range, default and paper.

    python -m wsod_jax.commands.option_tables docs/options.md

The page is made of the classes that hold the options, so it cannot say anything else than the code does; a test
compares the two.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

from wsod_jax import build
from wsod_jax.commands.command_line import make_parser, run_command
from wsod_jax.config.overrides import MOVED, MOVED_OF_OICR, REWRITTEN
from wsod_jax.config.parsing import DTYPES, Tables, described
from wsod_jax.config.run_config import RunConfig
from wsod_jax.options import (
    Mark,
    choice_of,
    default_of,
    is_required,
    is_section,
    marks,
    members,
    option_hints,
)

INTRODUCTION = """\
# Options

Every option of a configuration, made by `python -m wsod_jax.commands.option_tables docs/options.md` of the classes
that hold them. A file in `configs/` sets options; so does the command line, as `--config.method.beta=0.3`.
"Changes" says what may differ without making another run of it: *test*: `--set` changes it for one command;
*location*: `--set` changes it, and so may a resumed run; *resume*: a resumed run may change it. All of `eval` is of the
first kind, and `log` and `eval` are of the last.
"""
_UNIONS = {  # title of the members of a table
    "methods": "Methods: `method.name`",
    "backbones": "Backbones: `backbone.name`",
    "readers": "Readers of data sets: `data.reader`",
    "cues": "Cue sources: `cues.name`",
}
_HEADER = "| option | values | default | changes | what it is |\n|---|---|---|---|---|"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("path", type=Path, help="the file to write, docs/options.md")
    return run_command(run, parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Write the page."""
    options.path.write_text(page(build.union_tables()), encoding="utf-8")


def page(tables: Tables) -> str:
    """Return the whole page.

    Args:
      tables: the unions of a configuration; their members and all classes of options that these hold are listed.
    """
    lines = [INTRODUCTION, "## Sections", "", *_table(RunConfig, option_hints(RunConfig))]
    others: dict[type, None] = {}
    for key, hint in option_hints(RunConfig).items():
        for cls in filter(is_section, members(hint)):
            if choice_of(hint) is None:
                lines += _class_lines(f"`{key}`", cls, with_parts=True)
                others |= dict.fromkeys(_inner(cls))
    for table, title in _UNIONS.items():
        if tables[table]:
            lines += ["", f"## {title}", ""]
            with_parts = table not in ("methods", "cues")
            lines += _member_lines(tables[table], with_parts)
            found = (c for cls in tables[table].values() for c in _inner(cls, with_parts))
            others |= dict.fromkeys(found)
    lines += ["", "## Sections inside others"]
    for cls in others:
        lines += _class_lines(f"`{cls.__name__}`", cls, with_parts=True)
    lines += ["", "## Options of version 0.1", "", "They are refused with their new names.", ""]
    lines += ["| 0.1 | now |", "|---|---|"]
    for old, new in MOVED.items():
        lines += [f"| `{old}` | `{new}`{': ' * (old in REWRITTEN)}{REWRITTEN.get(old, '')} |"]
    of_oicr = ", ".join(f"`{old}`" for old in MOVED_OF_OICR)
    lines += [f'| {of_oicr} of `oicr` | the same of `oim` with `method.graphs = "spatial"` |']
    return "\n".join(lines) + "\n"


def described_fields(cls: type) -> dict[str, str]:
    """Return what the docstring of a class says of its fields, under "Attributes", as one line each."""
    text = inspect.cleandoc(vars(cls).get("__doc__") or "")
    found: dict[str, str] = {}
    names: tuple[str, ...] = ()
    inside = False
    for line in text.splitlines():
        if not line.startswith(" "):
            inside = line == "Attributes:" or (inside and not line)
            continue
        start = re.fullmatch(r" {2}(\w+(?:, \w+)*): (.*)", line)
        if inside and start:
            names = tuple(start[1].split(", "))
            found |= dict.fromkeys(names, start[2].strip())
        elif inside:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def defining_classes(cls: type, with_parts: bool) -> dict[type, list[str]]:
    """Return the classes that give `cls` its options, oldest first, with the options that each defines."""
    names, found = option_hints(cls, with_parts), {}
    owner = {
        name: next(c for c in cls.__mro__ if name in vars(c).get("__annotations__", {}))
        for name in names
    }
    for base in reversed(cls.__mro__):
        own = [name for name in names if owner[name] is base]
        if own:
            found[base] = own
    return found


def _member_lines(table: Mapping[str, type], with_parts: bool) -> Iterator[str]:
    """Yield the options of a union's members: those that several share once, under the class that defines them."""
    defined = {name: defining_classes(cls, with_parts) for name, cls in table.items()}
    classes = dict.fromkeys(cls for found in defined.values() for cls in found)
    yield "| name | options |"
    yield "|---|---|"
    for name, found in defined.items():
        anchors = (f"[{cls.__name__}](#{cls.__name__.lower()})" for cls in found)
        yield f"| `{name}` | {', '.join(anchors) or 'none'} |"
    for cls in classes:
        names = {key for found in defined.values() for key in found.get(cls, ())}
        owner = next(table[name] for name, found in defined.items() if cls in found)
        hints = {k: h for k, h in option_hints(owner, with_parts).items() if k in names}
        yield from ("", f"### {cls.__name__}", "")
        yield from _source(cls)
        yield from _table(cls, hints)


def _class_lines(title: str, cls: type, with_parts: bool) -> list[str]:
    return ["", f"### {title}", "", *_source(cls), *_table(cls, option_hints(cls, with_parts))]


def _source(cls: type) -> list[str]:
    """Return the line that says which paper a class is of, if it says so."""
    found = re.search(r"^Source: (.*?)(?:\n\n|\Z)", inspect.getdoc(cls) or "", re.DOTALL | re.M)
    source = vars(cls).get("paper") or (found and " ".join(found[1].split()))
    return [f"Source: {source.rstrip('.')}.", ""] if source else []


def _table(cls: type, hints: Mapping[str, Any]) -> list[str]:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        texts |= described_fields(base)
    rows = [_HEADER]
    for key, hint in hints.items():
        changes = ", ".join(mark.value for mark in marks(hint) if isinstance(mark, Mark))
        cells = (f"`{key}`", _values(hint), _default(fields[key]), changes, texts.get(key, ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _values(hint: Any) -> str:
    """Return what an option may be; sections by the name of their class."""
    if choice_of(hint) is not None:
        return "a section, see below" + ", None" * (type(None) in members(hint))
    sections = [f"`{member.__name__}`" for member in members(hint) if is_section(member)]
    if sections:
        return ", ".join(sections + ["None"] * (type(None) in members(hint)))
    inner = next(iter(_inner_of(hint)), None)
    if inner is None:
        return described(hint)
    outer = "sections by any name, each" if get_origin(hint) is Mapping else "tuples of"
    return f"{outer} `{inner.__name__}`"


def _default(field: dataclasses.Field) -> str:
    if is_required(field):
        return "**must be set**"
    value = default_of(field)
    if is_section(type(value)):
        return f"`{type(value).__name__}()`"
    name = next((name for name, dtype in DTYPES.items() if value is dtype), None)
    return f"`{name if name else repr(value)}`"


def _inner_of(hint: Any) -> Iterator[type]:
    """Yield the classes of options in an annotation."""
    for member in members(hint):
        if is_section(member):
            yield member
        else:
            for part in getattr(member, "__args__", ()):
                yield from _inner_of(part)


def _inner(cls: type, with_parts: bool = True) -> Iterator[type]:
    """Yield the classes of options that a class's options hold, and theirs."""
    for hint in option_hints(cls, with_parts).values():
        for inner in _inner_of(hint):
            yield inner
            yield from _inner(inner)


if __name__ == "__main__":
    raise SystemExit(main())
