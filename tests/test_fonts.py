"""Labels of pictures are drawn in a font that has their characters, or told apart by numbers."""

import logging

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font

from wsod_jax import viz
from wsod_jax.viz import fonts

USUAL = "DejaVuSans.ttf"
NOWHERE = "\U000f8f00"  # for private use: no font of matplotlib has it


def character_of_another_font():
    """Return a character that STIX, which matplotlib ships, has and the usual face has not."""
    folder = f"{matplotlib.get_data_path()}/fonts/ttf"
    others = set(FT2Font(f"{folder}/STIXGeneral.ttf").get_charmap())
    return chr(min(others - set(FT2Font(f"{folder}/{USUAL}").get_charmap())))


def picture(name):
    image = np.full((80, 200, 3), 255, np.uint8)
    boxes, classes = np.float32([[20, 30, 100, 70]]), np.array([0])
    return viz.draw_boxes(image, boxes, classes=classes, class_names=(name, "dog"))


def test_a_font_that_has_the_characters_is_taken():
    assert fonts.font(12, "cat").path.endswith(USUAL)
    rare = character_of_another_font()
    assert not fonts.font(12, f"cat {rare}").path.endswith(USUAL)
    assert viz.shown_names((f"cat {rare}", "dog")) == (f"cat {rare}", "dog")
    assert viz.legend((f"cat {rare}", "dog")) == ""
    assert len(fonts.families(["cat", rare])) == 2


def test_names_that_no_font_has_are_numbers_with_a_legend(caplog):
    names = (NOWHERE, "dog", f"cat {NOWHERE}")
    with caplog.at_level(logging.WARNING):
        assert viz.shown_names(names) == ("#1", "dog", "#3")
    assert "2 class names" in caplog.text and NOWHERE in caplog.text
    assert f"#1 {NOWHERE}, #3 cat {NOWHERE}" in viz.legend(names)
    np.testing.assert_array_equal(picture(NOWHERE), picture("#1"))
    assert (picture(NOWHERE) != picture("#2")).any()


@pytest.mark.filterwarnings("error")  # matplotlib warns of every missing glyph
@pytest.mark.parametrize("kind", ["nowhere", "rare"])
def test_charts_draw_all_names(kind):
    name = NOWHERE if kind == "nowhere" else character_of_another_font()
    assert viz.plot_instances({"set": np.ones((2, 1))}, [name]).ndim == 3
    curve = np.linspace(0, 1, 3), np.ones(3)
    assert viz.plot_precision_recall({viz.shown_names([name])[0]: curve}).ndim == 3


def test_captions_escape_what_no_font_has():
    assert fonts.writable("café") == "café"
    assert fonts.writable(f"a{NOWHERE}") == "a\\U000f8f00"
    image = np.zeros((40, 40, 3), np.uint8)
    sheets = [viz.contact_sheet([image], captions=[text]) for text in (NOWHERE, "\\U000f8f00")]
    np.testing.assert_array_equal(*sheets)
