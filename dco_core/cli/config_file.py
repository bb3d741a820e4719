"""The options of a command in a TOML file: read in their place, and written by every run so that it can be repeated."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DCOError
from ..files.atomic import whole_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_OF_THE_COMMAND = ("help", "config")  # make no sense in a file
_NOT_WRITTEN = ("overwrite",)  # a file that is kept must not replace others years later
HEAD = "# python -m dco_core"


class Several(argparse.Action):
    """An option that may be given several times. Given at all, it replaces what a file says."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        given = f"{self.dest} given"
        before = getattr(namespace, self.dest) if hasattr(namespace, given) else []
        setattr(namespace, given, True)
        setattr(namespace, self.dest, [*before, values])


def read_options(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """{attribute: value} of the options in a file, for `parser.set_defaults`: each under its name without the dashes in
    front, `learning-rate = 1e-4` or `learning_rate`; lists for options that may be given several times. Raises DCOError
    for a file that is no TOML, an option that is none, and a value that does not fit."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DCOError(f"--config {path} cannot be read ({error.strerror}): name a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DCOError(f"--config {path} is no TOML: {error}.") from None
    options = _options(parser)
    values: dict[str, Any] = {}
    for name, value in found.items():
        action = options.get(name.replace("_", "-"))
        if action is None:
            near = difflib.get_close_matches(name.replace("_", "-"), options, 1)
            hint = f"did you mean {near[0]}?" if near else "--help lists all options."
            raise DCOError(f"{path}: {name} is no option of this command: {hint}")
        values[action.dest] = _fitting(path, name, value, action)
    return values


def write_options(path: Path, parser: argparse.ArgumentParser, values: Mapping[str, Any], command: str) -> None:
    """Write a file that read_options reads as these values, whole or not at all. Paths are written in full, so that it
    works from every folder; options that were left out are left out. A file that somebody else has written stays."""
    try:
        if not path.read_text(encoding="utf-8").startswith(HEAD):
            return
    except UnicodeDecodeError:
        return
    except OSError:
        pass
    lines = [f"{HEAD} {command} --config {path.name}", ""]
    written: set[str] = set(_NOT_WRITTEN)
    for name, action in _options(parser).items():
        value = values[action.dest]
        if action.dest in written or value is None or value == [] or value == "":
            continue
        written.add(action.dest)
        lines.append(f"{name} = {_toml(_in_full(value, action))}")
    with whole_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """{name without dashes: the option}; of an option with a second name both."""
    return {
        text.removeprefix("--"): action
        for action in parser._actions
        if action.dest not in _OF_THE_COMMAND
        for text in action.option_strings
        if text.startswith("--") and not text.startswith("--no-")
    }


def _fitting(path: Path, name: str, value: Any, action: argparse.Action) -> Any:
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise DCOError(f"{path}: {name} is {value!r}: write true or false.")
        return value
    several = isinstance(action, Several)
    if several != isinstance(value, list):
        raise DCOError(f"{path}: {name} is {value!r}: write {'a list' if several else 'one value'}.")
    return [_one(path, name, v, action) for v in value] if several else _one(path, name, value, action)


def _one(path: Path, name: str, value: Any, action: argparse.Action) -> Any:
    kind: Any = action.type or str
    wanted = {int: "a whole number", float: "a number"}.get(kind, "text in quotation marks")
    fits = {
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool),
    }.get(kind, isinstance(value, str))
    if not fits:
        raise DCOError(f"{path}: {name} is {value!r}: write {wanted}.")
    if action.choices is not None and value not in action.choices:
        raise DCOError(f"{path}: {name} is {value!r}: use one of {', '.join(map(str, action.choices))}.")
    return kind(value)


def _in_full(value: Any, action: argparse.Action) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, list):
        return [_in_full(v, action) for v in value]
    if action.dest == "model":
        scheme, _, place = value.partition(":")
        return value if scheme == "toy-world" else f"{scheme}:{_found(place)}"
    return _found(value) if action.dest in ("clip", "vae") else value


def _found(name: str) -> str:
    """A path in full; a name in ComfyUI's folders as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _toml(value: Any) -> str:
    """A value in TOML. The libraries that write it are one more package for these lines."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):  # JSON's strings are TOML's, but for one character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return repr(value)
