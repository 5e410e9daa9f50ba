"""What all commands share: exit statuses, configuration files, settings on the command line."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from wsod_jax.__main__ import COMMANDS, main
from wsod_jax.commands import train
from wsod_jax.commands.command_line import (
    CONFIGS,
    command_text,
    load_config,
    make_parser,
    parse_with_overrides,
    run_command,
)
from wsod_jax.errors import ConfigError, DataError, NonFiniteError, PeerError

OPTIONS = argparse.Namespace()
SCRIPTS = sorted((Path(__file__).resolve().parents[1] / "scripts").glob("*.py"))


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


def test_the_console_command_can_be_typed_again(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/bin/wsod-jax", "train", "--workdir", "my runs"])
    with pytest.raises(SystemExit, match="2"):  # --config is missing
        main()
    assert "usage: wsod-jax train " in capsys.readouterr().err
    assert command_text() == "wsod-jax train --workdir 'my runs'"


def test_the_console_command_lists_the_scripts(capsys):
    assert sorted(COMMANDS) == sorted(path.stem for path in SCRIPTS)
    assert main(["--help"]) == main([]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    told = dict(line for line in lines if line and line[0] in COMMANDS)
    assert set(told) == set(COMMANDS) and all(len(text) <= 100 for text in told.values())


def test_an_unknown_command_is_told_of_a_close_one(capsys):
    assert main(["make-proposal"]) == main(["xyz"]) == 2
    close, far = capsys.readouterr().err.splitlines()
    assert "'make-proposal'" in close and "'make_proposals'" in close
    assert "'xyz'" in far and "wsod-jax --help" in far


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


def test_shipped_configurations_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("debug_tiny", "oim_ir_vgg16_voc07", "synthetic:pcl"):
        stem, _, variant = name.partition(":")
        path = f"{CONFIGS / stem}.py" + f":{variant}" * bool(variant)
        assert load_config(name) == load_config(path)
    with pytest.raises(ConfigError, match="debug_tiny.py.* no variant 'x'"):
        load_config("debug_tiny:x")
    for wrong in ("debug_tinny", "configs/debug_tiny.py"):
        with pytest.raises(DataError, match=rf"--config {wrong}: .*debug_tiny"):
            load_config(wrong)
    (tmp_path / "debug_tiny").write_text(PLAIN)
    assert load_config("debug_tiny") == {"seed": 3}


@pytest.mark.parametrize(
    ("text", "variant", "message"),
    [
        ("x = 1", "", "c.py.*get_config"),
        (PLAIN, ":two", r"c.py.*variant.*'two'"),
        (VARIANTS, "", r"variant.*--config .*c.py:VARIANT"),
        (VARIANTS, ":three", "(?s)c.py.*'three'.*Return one of: one, two"),
        ("def get_config(): return 3", "", r"c.py.*\bint\b"),
        (VARIANTS, ":", r"c.py:: .*variant"),
        ("a = 1\nb = = 2\n", "", r"c.py, line 2"),
        (PRESETS, ":yolo", r"c.py.*'yolo'.*wsd"),
    ],
)
def test_configuration_files_that_cannot_be_used(tmp_path, text, variant, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text) + variant)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from configs.voc_vgg16 import voc_vgg16", "configs.voc_vgg16"),
        ("import os, configs.spn as base", "configs.spn"),
        ("from configs import oim_vgg16_voc07", "configs"),
        ("def get_config():\n  from configs.spn import spn", "configs.spn"),
        ("import importlib\nimportlib.import_module('configs.spn')", "configs.spn"),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config(): ConfigDict({'method': {}}).neck.dims = (3,)",
            "config.neck",
        ),
        ("def get_config(): return {}['network']", "config.network"),
    ],
)
def test_files_of_version_0_1(tmp_path, text, found):
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, text))
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'c.py'} ")
    assert all(words in message for words in ("0.1", found, "CHANGELOG.md"))
    assert ("wsod_jax.presets" in message) == ("configs" in found)


def test_a_module_of_another_name_may_be_missing(tmp_path):
    for text in ("import my.configs", "from . import configs", "import configs_of_mine"):
        with pytest.raises(ImportError):
            load_config(write(tmp_path, text))


def test_train_py_says_how_a_setting_is_written(capsys):
    line = "--config c.py --workdir w --set config.train.num_steps=3".split()
    with pytest.raises(SystemExit, match="2"):
        train.parse_arguments(line)
    assert "--config.train.num_steps=3" in capsys.readouterr().err


def test_an_error_inside_a_configuration_file_is_its_own(tmp_path):
    broken = "def get_config(name): return {}['elsewhere']"
    with pytest.raises(KeyError, match="elsewhere"):
        load_config(write(tmp_path, broken) + ":one")
    with pytest.raises(DataError, match="nowhere.py"):
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
    assert "--config.a.b=VALUE" in capsys.readouterr().err


def test_options_are_not_guessed(parser):
    with pytest.raises(SystemExit, match="2"):
        parse_with_overrides(parser, ["--step", "1"])


@pytest.mark.parametrize("platform", ["cuda", "gpu", "abacus"])
def test_a_platform_that_is_not_there_is_named(platform):
    if platform != "abacus" and jax.default_backend() == "gpu":
        pytest.skip("this machine has one")
    program = (
        "import jax, sys; from wsod_jax.commands.command_line import run_command;"
        "sys.exit(run_command(lambda _: print(jax.devices()), None))"
    )
    environment = os.environ | {"JAX_PLATFORMS": platform}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert f"'{platform}'" in done.stderr and "'cpu'" in done.stderr
    assert "JAX_PLATFORMS" in done.stderr


def test_errors_of_a_program_itself_keep_their_traceback():
    def fail(_):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_command(fail, None)
