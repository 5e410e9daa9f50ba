"""The words of the project: American spelling and plain technical English, in code and documents."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BANNED = {
    r"\w*(?:local|optim|normal|regular|initial|summar|quant|recogn|organ|minim|maxim|visual|util)"
    r"is(?:e[drs]?|ing|ation\w*)\b": "American spelling: -ize",
    r"\w*(?:colour|centre|neighbour|behaviour|favour|labell(?:ed|ing)|artefact|learnt|licence)\w*": (
        "American spelling"
    ),
    r"\bgrey\b": "gray",
    r"\b\w*pictures?\b": "image, for what is given; figure, for what is drawn",
    r"\bbeside\b": "next to; in addition to",
    r"\banew\b": "again",
    r"\bso many\b": "this many",
    r"(?<!there )\b(?:is|are|was|were) no (?!longer|more|less|faster|better|worse|slower|bigger|such)\w+": "is not a",
    r"\bone's own\b": "a user's, custom",
    r"\bneck\b": "box head",
    r"\bis_core\b|\bTruthTable\b": "is_seed, GroundTruth",
    r"\b(?:hits?|have|has) no say\b|\bwants? to be\b": "plain technical English",
}
# Names of others, and of versions before.
ALLOWED = {
    "CHANGELOG.md": r".*",
    "docs/options.md": r"\| `.*` \| `.*` \|.*",
    "wsod_jax/config/overrides.py": r'\s+".*": .*',
    "wsod_jax/commands/command_line.py": r".*network\|neck\|soft_proposal.*",
}


def texts() -> list[Path]:
    """Return code, scripts, configurations and documents; tests may name what they refuse."""
    folders = ("wsod_jax", "scripts", "configs", "docs")
    found = [p for f in folders for s in ("*.py", "*.md") for p in (ROOT / f).rglob(s)]
    return sorted(found + list(ROOT.glob("*.md")))


@pytest.mark.parametrize("pattern", BANNED)
def test_no_banned_words(pattern):
    found = []
    for path in texts():
        allowed = ALLOWED.get(str(path.relative_to(ROOT)), r"(?!)")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(pattern, line, re.IGNORECASE) and not re.fullmatch(allowed, line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, f"{BANNED[pattern]}:\n" + "\n".join(found)
