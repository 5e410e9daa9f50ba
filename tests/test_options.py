"""The reference of options is what the classes say, and says something of every option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from wsod_jax import build
from wsod_jax.commands.option_tables import defining_classes, described_fields, main, page
from wsod_jax.options import SHARE, Mark

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"


def test_committed_page_is_the_generated_one(tmp_path):
    assert main([str(tmp_path / "options.md")]) == 0
    text = (tmp_path / "options.md").read_text(encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text, (
        "run python -m wsod_jax.commands.option_tables docs/options.md"
    )


def test_page_says_what_every_option_is():
    rows = [line for line in page(build.union_tables()).splitlines() if line.startswith("| `")]
    options = [row for row in rows if row.count(" | ") == 4]
    assert len(options) > 130
    silent = [row for row in options if not row.split(" | ")[4].strip(" |")]
    assert not silent


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base.

    Attributes:
      first, second: both of them,
        told over two lines: with a colon.

    Source: nowhere.
    """

    first: int = 1
    second: Annotated[float, SHARE, Mark.TEST] = 0.5


@dataclass(frozen=True, kw_only=True)
class Toy(Base):
    """A toy.

    Attributes:
      backbone: part: not an option.
      third: its own | with a bar.
    """

    backbone: object
    third: str | None = None

    paper: ClassVar[str] = "Doe 2026 (TOY)"


def test_page_of_a_method_that_is_handed_in():
    told = described_fields(Base)
    assert told["first"] == told["second"] == "both of them, told over two lines: with a colon."
    assert defining_classes(Toy, with_parts=False) == {Base: ["first", "second"], Toy: ["third"]}
    text = page({**build.union_tables(), "methods": {"toy": Toy}})
    assert "| `toy` | [Base](#base), [Toy](#toy) |" in text
    assert "### Toy\n\nSource: Doe 2026 (TOY).\n" in text
    assert "### Base\n\nSource: nowhere.\n" in text
    assert "| `second` | numbers from 0 to 1 | `0.5` | test | both of them," in text
    assert "| `third` | text, None | `None` |  | its own \\| with a bar. |" in text
    assert "| `backbone` | a section" in text and "not an option" not in text
