"""Read YAML files into frozen dataclasses. An unknown key, a missing key or a wrong type is an error."""

import dataclasses
import types
import typing
from pathlib import Path

import yaml

from .limits import short


class ConfigError(ValueError):
    """A configuration has a wrong key or value. The message names the file and the key."""


def read_yaml(path: Path) -> object:
    """Read a YAML file, and put what it holds over the file that it names as its base.

    Raises:
        ConfigError: a file cannot be read or is not YAML, a key is there twice, or the base is not a file beside it.
    """
    values = _read(path)
    if not isinstance(values, dict) or "base" not in values:
        return values
    name = values.pop("base")
    if not isinstance(name, str) or Path(name).name != name:
        raise ConfigError(f"{path}: base: {short(name)} is not the name of a file in the same folder")
    return _merged(_read(path.with_name(name)), values)


def _merged(base: object, changes: object) -> object:
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    return base | {key: _merged(base.get(key), value) for key, value in changes.items()}


def _read(path: Path) -> object:
    """Read a YAML file. The message of a ConfigError begins with the path."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError means bytes that are not text, or an impossible date
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


class _UniqueKeys(yaml.SafeLoader):
    """A loader that refuses a key which is there twice. By itself, YAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if name in lines:
                raise yaml.YAMLError(f"the key {short(name)} is there twice, in lines {lines[name]} and {line}")
            lines[name] = line
        return super().construct_mapping(node, deep)


def build(kind: type, value: object, where: str = ""):
    """Turn a value read from YAML into the given type, such as a dataclass.

    Raises:
        ConfigError: the value has another type, or a key is unknown or missing. The message starts with `where`, which
            names the key.
    """
    if types.NoneType in typing.get_args(kind):
        return None if value is None else build(typing.get_args(kind)[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if not isinstance(value, list) or len(value) != len(kinds):
            raise ConfigError(f"{where}{short(value)} is not a list of {len(kinds)}")
        places = [f"{where.removesuffix(': ')}[{i}]: " for i in range(len(kinds))]
        return tuple(build(*each) for each in zip(kinds, value, places, strict=True))
    if kind is float and type(value) is int:
        return value  # check_sampling makes it a float, if it is not too large
    # `type(...) is` instead of isinstance, because to Python a bool is an int.
    if type(value) is not kind:
        raise ConfigError(f"{where}{short(value)} is not of type {kind.__name__}")
    return value


def _build_dataclass(kind: type, value: object, where: str):
    hints = typing.get_type_hints(kind)
    if not isinstance(value, dict):
        raise ConfigError(f"{where}expected the keys {', '.join(hints)}")
    if unknown := [key for key in value if key not in hints]:
        raise ConfigError(f"{where}unknown key {short(unknown[0])}; known are {', '.join(hints)}")
    optional = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
    if missing := [key for key in hints if key not in value and key not in optional]:
        raise ConfigError(f"{where}missing key {missing[0]!r}")
    return kind(**{key: build(hints[key], value[key], f"{where}{key}: ") for key in value})
