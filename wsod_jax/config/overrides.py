"""From plain values to a configuration, and changes that come as text: before a run, of a trained and a resumed one."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wsod_jax.config.eval_options import EvalOptions
from wsod_jax.config.parsing import Tables, chosen_name, fits, parse_options, plain, resolve
from wsod_jax.config.run_config import RunConfig
from wsod_jax.errors import ConfigError
from wsod_jax.options import Choice, Mark, choice_of, is_section, marks, members, option_hints
from wsod_jax.train.identity import dotted

OF_BOXES = (
    "nms_thr",
    "top_k",
    "max_per_image",
    "score_thr",
    "average_per_image",
)  # of boxes chosen among proposals
# Keys of version 0.1, and where they went; the longest one that a key starts with counts.
MOVED = {
    "network": "method",
    "neck": "method.box_head",
    "soft_proposal": "method.soft_proposal",
    "localization": "eval.maps",
    "eval.corloc_split": "eval.passes.corloc.split",
    "eval.corloc_resize": "eval.passes.corloc.resize",
    "localization.solver": "method.soft_proposal.solver",
    "backbone.weights": "train.init_from",
    "method.fg_iou_thr": "method.iou_thrs",
    "backbone.pixels": "backbone.preprocessing",
    "method.max_centres": "method.max_centers",
    "method.node_neighbours": "method.node_neighbors",
    "method.normaliser": "method.normalizer",
    "train.cache_features": "train.cache",
    "log.every": "log.log_interval",
    "log.checkpoint_every": "log.checkpoint_interval",
    "log.milestones_every": "log.keep_period",
    "log.pictures_every": "log.image_interval",
    "log.num_pictures": "log.num_images",
}
# What the new value looks like, where it is not the old one.
REWRITTEN = {
    "backbone.pixels": '"torchvision" is "torch", "inception" is "tf"',
    "backbone.weights": "a tuple, () for none",
    "method.fg_iou_thr": "0.5 is (0.5, 0.5)",
    "train.cache_features": 'True is "features", False is "none"',
}
MOVED_OF_OICR = ("method.reweight", "method.beta", "method.release_core_sign")


def parse_run(values: Mapping[str, Any], tables: Tables) -> RunConfig:
    """Return the typed configuration that plain values give; `build.read_config` checks more.

    Args:
      values: section -> its options, a ConfigDict for one, or what JSON has of `RunConfig.to_dict`.
      tables: name -> class of the unions "methods", "backbones", "readers" and "cues".

    Raises:
      ConfigError: for a section or option that does not exist, is missing, has a value that is not allowed, or
        is of version 0.1.
    """
    values = plain(values)
    moves = [move for key in dotted(values) if (move := move_of(key, values, tables)) is not None]
    if moves:
        lines = "\n".join(f"  {move}" for move in moves)
        raise ConfigError(
            f"the configuration is one of version 0.1, whose options have moved:\n{lines}\nCHANGELOG.md tells more"
        )
    return RunConfig(**parse_options(RunConfig, values, tables, "config"), tables=tables)


def override(
    values: Mapping[str, Any], settings: Sequence[str], tables: Tables
) -> tuple[dict[str, Any], list[str]]:
    """Return plain values of a configuration with settings such as "train.num_steps=100" in place.

    Names of unions' members ("method.name=mist") are set first. The options that the new member has too stay.

    Args:
      values: section -> options; left alone.
      settings: "a.b=value", parsed by the option's type, see `from_text`. Sections that are missing or `None` are made.
      tables: the unions.

    Returns:
      The new values, for `build.read_config` to check, and what there is to say: options that were dropped.

    Raises:
      ConfigError: for a setting without "=", a name of version 0.1, or an option that does not exist.
    """
    values, notes = plain(values), []
    parsed = [_split(setting) for setting in settings]
    chosen = {id(path): _choice_set(path, values, tables) for path, _ in parsed}
    for path, text in sorted(parsed, key=lambda item: chosen[id(item[0])] is None):
        choice, key = chosen[id(path)], ".".join(path)
        try:
            hint = resolve(RunConfig, path, values, tables)[-1]
        except ConfigError:
            _refuse_old(key, values, tables)
            raise
        section = _open_section(values, path[:-1])
        value = from_text(text, hint, tables)
        if value == (text,) and "," in text:
            items = tuple(item.strip() for item in text.split(","))
            raise ConfigError(
                f"config.{key} is {text!r}; several texts are written as a tuple, in quotation marks for the shell: "
                f'"{key}={items}"'
            )
        if choice is not None:
            notes += _drop(section, value, choice, tables, key)
        section[path[-1]] = value
    return values, notes


def change(config: RunConfig, changes: Sequence[str]) -> RunConfig:
    """Return the configuration of a trained run with changes to how it is tested, or where its files lie.

    Args:
      config: as the run has stored it.
      changes: such as "nms_thr=0.4" and "maps.threshold=2", which are short for "eval.nms_thr=0.4" and
        "eval.maps.threshold=2", and "data.root=/data/VOCdevkit".

    Raises:
      ConfigError: for any other option of the run, one that its method does not use, and as `override`.
    """
    values, settings = config.to_dict(), []
    for item in changes:
        path, text = _split(item, example="nms_thr=0.4")
        path = _full_path(path, config)
        key = ".".join(path)
        try:
            hints = resolve(RunConfig, path, values, config.tables)
        except ConfigError:
            _refuse_old(key, values, config.tables)
            raise
        allowed = _has_mark(hints, Mark.TEST, Mark.LOCATION) and path[0] != "train"
        if path[0] != "eval" and not allowed:
            raise ConfigError(_not_for_trained_runs(key, config))
        if values.get(path[0]) is None:
            raise ConfigError(
                f"{key} cannot be set for a trained run: {config.method.name} has no {path[0]}"
            )
        if path[0] == "eval":
            _check_use(path, config)
        settings.append(f"{key}={text}")
    values, _ = override(values, settings, config.tables)
    return parse_run(values, config.tables)


def may_differ(config: RunConfig) -> tuple[str, ...]:
    """Return the dotted names that a resumed run may change; each stands for everything below it.

    A cosine is stretched over `train.num_steps`, which then has to stay.
    """
    names = ("log", "eval", *_marked(config, Mark.RESUME, Mark.LOCATION))
    fixed = {"train.num_steps"} if config.optim.shape == "cosine" else set()
    return tuple(name for name in names if name not in fixed)


def locations(config: RunConfig) -> tuple[str, ...]:
    """Return the dotted names of options that say where files lie; a run stays the same when its data move."""
    return tuple(_marked(config, Mark.LOCATION))


def method_outputs(config: RunConfig) -> frozenset[str]:
    """Return what the configuration's method predicts."""
    parts = dict(backbone=config.backbone, num_classes=1, max_classes=1, max_targets=1)
    return config.method.make(**parts).outputs


def move_of(key: str, values: Mapping[str, Any], tables: Tables) -> str | None:
    """Return in words where a dotted key of version 0.1 went, or `None` if it is none of those.

    Args:
      key: "network.num_stages".
      values: plain values of the configuration, which say the method.
      tables: the unions.
    """
    old = next((o for o in sorted(MOVED, key=len)[::-1] if f"{key}.".startswith(f"{o}.")), None)
    section = values.get("method")
    name = section.get("name") if isinstance(section, Mapping) else None
    if key in MOVED_OF_OICR and name == "oicr" and not _exists(key, values, tables):
        return (
            f"config.{key} of oicr is now an option of oim, which assigns proposals as oicr did if its graphs are "
            '"spatial": config.method.name=oim config.method.graphs=spatial'
        )
    if old is None or _exists(key, values, tables):
        return None
    new, methods = MOVED[old] + key[len(old) :], tables["methods"]
    options = {n: {**values, "method": {"name": n}, "eval": {}} for n in methods}
    owners = [n for n in methods if _exists(new, options[n], tables) and _uses(methods[n], new)]
    if not owners:
        return None  # there never was such an option
    if name in methods and name not in owners:
        return f"config.{key} was moved to config.{new}, which {name} lacks; drop it"
    return f"config.{key} is now config.{new}" + (f": {REWRITTEN[old]}" if old in REWRITTEN else "")


def from_text(text: str, hint: Any, tables: Tables) -> Any:
    """Return what a text on the command line means for an option.

    A Python literal where the option's annotation takes it, one value also for a tuple of them; text stays text
    where the option takes text. What fits nothing comes back as it reads, to be refused with what is allowed.
    """
    try:
        literal = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        literal = text
    if literal is None:
        return None  # where an option takes no None, it is refused with what is allowed
    candidates = [literal, (literal,), text, (text,)]
    if str in members(hint):  # 2007 is a name there, but ('2007', '2012') may be a tuple of them
        candidates = [literal, text] if isinstance(literal, tuple | list) else [text]
    for candidate in map(plain, (*candidates, *map(_whole, candidates))):
        if fits(candidate, hint, tables):
            return candidate
    return plain(literal)


def _whole(value: Any) -> Any:
    """Return 1e3 as 1000, also inside tuples and lists; everything else as it is."""
    if isinstance(value, tuple | list):
        return tuple(map(_whole, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _split(setting: str, example: str = "train.num_steps=100") -> tuple[list[str], str]:
    key, equals, text = setting.partition("=")
    path = key.strip().removeprefix("config.").split(".")
    if not equals or not all(path):
        raise ConfigError(f"{setting!r} is not a setting; settings look like {example}")
    return path, text


def _refuse_old(key: str, values: Mapping[str, Any], tables: Tables) -> None:
    move = move_of(key, values, tables)
    if move is not None:
        raise ConfigError(f"an option of version 0.1: {move}")


def _uses(method: type, key: str) -> bool:
    """Return whether an option is of any use to a method; those of maps are to methods that predict maps."""
    return key.split(".")[:2] != ["eval", "maps"] or "maps" in method.outputs


def _full_path(path: Sequence[str], config: RunConfig) -> list[str]:
    """Return the path of an option of a trained run, of which those of the section "eval" are given without it."""
    key = path[0]
    if key in option_hints(EvalOptions) or [*path] == ["eval"]:
        return ["eval", *path]
    if len(path) > 1:
        return [*path]
    if key in option_hints(RunConfig):
        return [key]
    found = [name for name in dotted(config.to_dict()) if name.rpartition(".")[2] == key]
    can_be_set = [name for name in found if name.startswith("eval.") or name in _settable(config)]
    if can_be_set:
        raise ConfigError(
            f"{key} is not an option of eval; did you mean {' or '.join(can_be_set)}, with its section?"
        )
    if found:
        raise ConfigError(_not_for_trained_runs(" or ".join(found), config))
    return ["eval", key]


def _settable(config: RunConfig) -> list[str]:
    """Return the dotted names of what `--set` changes of a trained run, but for its test settings."""
    names = _marked(config, Mark.TEST, Mark.LOCATION)
    return [name for name in names if not name.startswith("train.")]  # it has started


def _not_for_trained_runs(key: str, config: RunConfig) -> str:
    return (
        f"{key} cannot be set for a trained run; what can are the test settings, such as nms_thr=0.4, and "
        f"{', '.join(_settable(config))}"
    )


def _check_use(path: Sequence[str], config: RunConfig) -> None:
    """Raise `ConfigError` for a test setting about what the method does not predict."""
    outputs, key = method_outputs(config), ".".join(path)
    told = f"{config.method.name} predicts {', '.join(sorted(outputs))}"
    if path[1] in OF_BOXES and "boxes" not in outputs:
        has_twin = path[1] == "nms_thr" and "maps" in outputs
        advice = ": --set eval.maps.nms_thr=0.7" if has_twin else ""
        raise ConfigError(f"{key} is about boxes chosen among proposals; {told}{advice}")
    if path[1] == "maps" and "maps" not in outputs:
        raise ConfigError(f"{key} is about maps; {told}")


def _choice_set(path: Sequence[str], values: Mapping[str, Any], tables: Tables) -> Choice | None:
    """Return the union whose member a setting names, if it names one."""
    if len(path) < 2:
        return None
    try:
        choice = choice_of(resolve(RunConfig, path[:-1], values, tables)[-1])
    except ConfigError:
        return None
    return choice if choice is not None and path[-1] == choice.key else None


def _open_section(values: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Return the section at a path, made where it is missing."""
    for key in path:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    return values


def _drop(
    section: dict[str, Any], name: Any, choice: Choice, tables: Tables, key: str
) -> list[str]:
    """Take out of a union's section what its new member lacks; return what there is to say of it."""
    new = tables[choice.table].get(name)
    if new is None or section.get(choice.key) == name:
        return []
    kept = {choice.key, *option_hints(new)}
    dropped = [option for option in section if option not in kept]
    for option in dropped:
        del section[option]
    return [f"{key}={name} drops {', '.join(dropped)}, which {name} lacks"] if dropped else []


def _has_mark(hints: Sequence[Any], *wanted: Mark) -> bool:
    return any(mark in wanted for hint in hints for mark in marks(hint))


def _marked(config: RunConfig, *wanted: Mark) -> list[str]:
    """Return the dotted names of a configuration's options that have one of some marks."""
    return list(_walk(RunConfig, config.to_dict(), config.tables, wanted, ""))


def _walk(
    cls: type, values: Mapping[str, Any], tables: Tables, wanted: Sequence[Mark], prefix: str
) -> Iterator[str]:
    for key, hint in option_hints(cls).items():
        inside, choice = next(filter(is_section, members(hint)), None), choice_of(hint)
        if key not in values:
            continue
        if _has_mark([hint], *wanted):
            yield prefix + key
        elif isinstance(values[key], Mapping) and (choice or inside):
            if choice is not None:
                inside = tables[choice.table][chosen_name(values[key], choice, tables, key)]
            yield from _walk(inside, values[key], tables, wanted, f"{prefix}{key}.")


def _exists(key: str, values: Mapping[str, Any], tables: Tables) -> bool:
    try:
        resolve(RunConfig, key.split("."), values, tables)
    except ConfigError:
        return False
    return True
