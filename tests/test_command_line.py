"""What all commands share: exit statuses, configuration files, settings on the command line."""

import argparse
import sys

import pytest

from wsod_jax.commands import train
from wsod_jax.commands.command_line import (
    command_text,
    load_config,
    make_parser,
    parse_with_overrides,
    run_command,
)
from wsod_jax.errors import ConfigError, DataError, NonFiniteError, PeerError

OPTIONS = argparse.Namespace()


@pytest.mark.parametrize("error", [ConfigError, DataError, NonFiniteError, PeerError, OSError])
def test_what_a_user_can_mend_is_one_line(capsys, error):
    def body(options):
        raise error("the file is gone")

    assert run_command(body, OPTIONS) == 1
    assert capsys.readouterr().err == "error: the file is gone\n"


def test_other_ends_of_a_command(capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    assert run_command(lambda options: None, OPTIONS) == 0
    assert run_command(lambda options: 7, OPTIONS) == 7
    assert run_command(interrupted, OPTIONS, interrupted="run it again") == 130
    assert capsys.readouterr().err == "\nrun it again\n"
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        run_command(lambda options: 1 / 0, OPTIONS)


def test_the_command_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "--workdir", "my runs"])
    assert command_text().endswith("scripts/train.py --workdir 'my runs'")
    assert command_text(["--config.a.b", "(1, 2)"]).endswith("train.py --config.a.b '(1, 2)'")


PLAIN = "def get_config(): return {'seed': 3}\n"
VARIANTS = """
from ml_collections import ConfigDict
SEEDS = {"one": 1, "two": 2}
def get_config(name):
    \"\"\"Return one of: one, two.\"\"\"
    return ConfigDict({"seed": SEEDS[name], "train": {"scales": (32, 64)}})
"""


PRESETS = """
from wsod_jax.presets import DETECTORS, of_variant
def get_config(variant):
    return dict(of_variant(variant, DETECTORS))
"""


def write(folder, text):
    path = folder / "c.py"
    path.write_text(text)
    return str(path)


def test_configuration_files(tmp_path):
    assert load_config(write(tmp_path, PLAIN)) == {"seed": 3}
    values = load_config(write(tmp_path, VARIANTS) + ":two")
    assert values == {"seed": 2, "train": {"scales": (32, 64)}}
    assert type(values) is dict and type(values["train"]) is dict
    assert "c" not in sys.modules


@pytest.mark.parametrize(
    ("text", "variant", "message"),
    [
        ("x = 1", "", "c.py has no function get_config"),
        (PLAIN, ":two", r"c.py takes no variant, found 'two'"),
        (VARIANTS, "", r"c.py needs a variant, found none; give --config .*c.py:VARIANT"),
        (VARIANTS, ":three", "(?s)c.py has no variant 'three'.*Return one of: one, two"),
        ("def get_config(): return 3", "", "returned int; it must return"),
        (VARIANTS, ":", r"c.py:: give a variant after the colon, or drop it"),
        ("a = 1\nb = = 2\n", "", r"c.py, line 2: invalid syntax"),
        (PRESETS, ":yolo", r"c.py: The configuration has no variant 'yolo'; its variants are wsd"),
    ],
)
def test_configuration_files_that_cannot_be_used(tmp_path, text, variant, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text) + variant)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from configs.voc_vgg16 import voc_vgg16", "it imports configs.voc_vgg16"),
        ("import os, configs.spn as base", "it imports configs.spn"),
        ("from configs import oim_vgg16_voc07", "it imports configs;"),
        ("def get_config():\n  from configs.spn import spn", "it imports configs.spn"),
        ("import importlib\nimportlib.import_module('configs.spn')", "it imports configs.spn"),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config(): ConfigDict({'method': {}}).neck.dims = (3,)",
            "it asks for config.neck",
        ),
        ("def get_config(): return {}['network']", "it asks for config.network"),
    ],
)
def test_files_of_version_0_1(tmp_path, text, found):
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, text))
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'c.py'} is of version 0.1: {found}")
    assert message.endswith("CHANGELOG.md has the table")
    assert ("wsod_jax.presets" in message) == ("configs" in found)


def test_a_module_of_another_name_may_be_missing(tmp_path):
    for text in ("import my.configs", "from . import configs", "import configs_of_mine"):
        with pytest.raises(ImportError):
            load_config(write(tmp_path, text))


def test_train_py_says_how_a_setting_is_written(capsys):
    line = "--config c.py --workdir w --set config.train.num_steps=3".split()
    with pytest.raises(SystemExit, match="2"):
        train.parse_arguments(line)
    assert "in train.py write --config.train.num_steps=3" in capsys.readouterr().err


def test_an_error_inside_a_configuration_file_is_its_own(tmp_path):
    broken = "def get_config(name): return {}['elsewhere']"
    with pytest.raises(KeyError, match="elsewhere"):
        load_config(write(tmp_path, broken) + ":one")
    with pytest.raises(DataError, match="nowhere.py: no such configuration file"):
        load_config("nowhere.py:one")


@pytest.fixture
def parser():
    made = make_parser("A command.")
    made.add_argument("--config")
    made.add_argument("--steps", nargs="*", type=int)
    return made


def test_settings_are_taken_out_of_the_command_line(parser):
    line = "--config c.py --config.a.b=1 --steps 1 2 --config.a.c (1,-2) --config.d=x=y".split()
    options = parse_with_overrides(parser, line)
    assert (options.config, options.steps) == ("c.py", [1, 2])
    assert options.overrides == ["a.b=1", "a.c=(1,-2)", "d=x=y"]
    assert parse_with_overrides(parser, ["--config.a", "-1"]).overrides == ["a=-1"]
    assert parse_with_overrides(parser, ["--config.a="]).overrides == ["a="]


@pytest.mark.parametrize("line", [["--config.a.b"], ["--config.a.b", "--steps"]])
def test_a_setting_without_a_value_is_refused(parser, capsys, line):
    with pytest.raises(SystemExit, match="2"):
        parse_with_overrides(parser, line)
    assert "--config.a.b has no value; settings look like --config.a.b=VALUE" in capsys.readouterr().err  # fmt: skip


def test_options_are_not_guessed(parser):
    with pytest.raises(SystemExit, match="2"):
        parse_with_overrides(parser, ["--step", "1"])
