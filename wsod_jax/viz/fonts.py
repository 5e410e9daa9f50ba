"""Fonts that have the characters of a text, among those of this machine; class names that none has become numbers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import ImageFont

logger = logging.getLogger(__name__)


@functools.cache
def font(size_px: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Return a face that has all characters of a text at a size; the usual one where none has."""
    file = _file_for(frozenset(text)) or _files()[0]
    return ImageFont.truetype(str(file), size_px)


def writable(text: str) -> str:
    """Return a text; with backslash escapes for all but ASCII if no font has its characters."""
    if _file_for(frozenset(text)):
        return text
    return text.encode("ascii", "backslashreplace").decode()


def shown_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return class names as figures show them: "#3", the third, for a name that no font can draw; a warning tells."""
    return _shown_names(tuple(class_names))


def legend(class_names: Sequence[str]) -> str:
    """Return a sentence that says which numbers stand for which names in figures; empty where none does."""
    shown = zip(shown_names(class_names), class_names, strict=True)
    numbers = ", ".join(f"{number} {name}" for number, name in shown if number != name)
    if not numbers:
        return ""
    return (
        f"no font here has the characters of some class names, so figures show numbers: {numbers}"
    )


def families(texts: Iterable[str]) -> list[str]:
    """Return the families of fonts that matplotlib needs for these texts, the usual one first."""
    from matplotlib.ft2font import FT2Font

    files = [_files()[0], *filter(None, (_file_for(frozenset(text)) for text in texts))]
    return list(dict.fromkeys(FT2Font(str(file)).family_name for file in files))


@functools.cache
def _shown_names(class_names: tuple[str, ...]) -> tuple[str, ...]:
    numbers = (f"#{number}" for number in range(1, len(class_names) + 1))
    shown = tuple(
        name if _file_for(frozenset(name)) else number
        for name, number in zip(class_names, numbers, strict=True)
    )
    if shown != class_names:
        lacking = [name for name, label in zip(class_names, shown, strict=True) if name != label]
        logger.warning(
            "no font here has the characters of %d class names (%s); figures show their numbers, #1 for the first "
            "class. Install a font that has them, such as Noto Sans CJK.",
            len(lacking),
            ", ".join(lacking[:5]),
        )
    return shown


@functools.cache
def _files() -> tuple[Path, ...]:
    """Return the font files of this machine: the sans-serif face that matplotlib ships, then upright ones."""
    import matplotlib
    from matplotlib import font_manager

    first = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    entries = sorted(
        font_manager.fontManager.ttflist,
        key=lambda entry: (entry.style != "normal", str(entry.weight) not in ("400", "normal")),
    )
    others = (Path(e.fname) for e in entries if not e.name.startswith("Last Resort"))
    return tuple(dict.fromkeys([first, *others]))


@functools.cache
def _file_for(characters: frozenset[str]) -> Path | None:
    """Return the first font that has all characters."""
    wanted = {ord(character) for character in characters if not character.isspace()}
    return next((file for file in _files() if wanted <= _characters(file)), None)


@functools.cache
def _characters(file: Path) -> frozenset[int]:
    """Return the code points that a font has; none of a file that cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(str(file)).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
