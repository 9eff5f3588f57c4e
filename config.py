"""Records: frozen, validated, and a plain YAML file at once.

A record round-trips through YAML, `path=value` overrides any part of it, an unknown key is an
error that names the near miss, and its digest says whether two runs mean the same thing.
No import strings and no code: a `kind` is looked up in the table of contents of a folder.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import RecipeError


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Part(Record):
    """A record that is one of several: a model, an objective, a head. Its kind says which."""

    kind: ClassVar[str]


R = TypeVar("R", bound=Record)
Kinds = Mapping[str, type[Part]]


def kinds(*folders: ModuleType) -> dict[str, type[Part]]:
    """The parts that the folders' tables of contents (`__init__`) list, by kind."""
    listed = [value for folder in folders for value in vars(folder).values()]
    parts = [value for value in listed if isinstance(value, type) and issubclass(value, Part)]
    return {part.kind: part for part in parts if hasattr(part, "kind")}


def plain(record: Record) -> dict[str, Any]:
    """The record as JSON-ready values, each part with its kind first."""
    return {name: _plain(getattr(record, name)) for name in type(record).model_fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return {"kind": value.kind, **plain(value)}
    if isinstance(value, Record):
        return plain(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast(Sequence[Any], value)]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in cast(dict[str, Any], value).items()}
    return value


def digest(value: Record | Mapping[str, Any]) -> str:
    """16 hex digits of SHA-256 over the canonical JSON of a record."""
    values = plain(value) if isinstance(value, Record) else value
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def to_yaml(record: Record) -> str:
    """The record as a YAML file that `parse(from_yaml(...))` reads back equal."""
    return yaml.safe_dump(plain(record), sort_keys=False, allow_unicode=True)


def from_yaml(text: str, *, source: str) -> dict[str, Any]:
    """Plain values of a YAML mapping; never code, never objects.

    Raises:
        RecipeError: the text is no YAML, or no mapping at its top.
    """
    if text.count("*") > 100 or len(text) > 1_000_000:
        raise RecipeError(f"{source}: too many YAML aliases or more than 1 MB; write it out.")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise RecipeError(f"{source} is not YAML: {' '.join(str(err).split())}") from err
    if not isinstance(values, dict):
        raise RecipeError(f"{source} must hold `key: value` lines, not a {type(values).__name__}.")
    return cast(dict[str, Any], values)


def override(values: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Plain values with each `path=value` of `settings` put in; values are read as YAML.

    A list is addressed by position or by the kind of its parts: `objectives.mlm.rate=0.2`.

    Raises:
        RecipeError: no `=`, or a path that leads nowhere (the near miss is named).
    """
    values = json.loads(json.dumps(values))
    for setting in settings:
        path, sep, text = setting.partition("=")
        if not sep:
            raise RecipeError(f"--set {setting!r} has no '='. Write --set optim.lr=3e-4.")
        try:
            _put(values, path.strip().split("."), _scalar(text), setting)
        except yaml.YAMLError as err:
            raise RecipeError(f"--set {setting!r}: the value is not YAML.") from err
    return values


def _scalar(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string; nobody means that
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _put(values: Any, path: list[str], value: Any, setting: str) -> None:
    head, *rest = path
    if isinstance(values, list):
        items = cast(list[Any], values)
        names = [item.get("kind", "") if isinstance(item, dict) else "" for item in items]
        if not (head in names or (head.isdigit() and int(head) < len(items))):
            raise RecipeError(_unknown(head, [n for n in names if n], f"--set {setting!r}"))
        index = names.index(head) if head in names else int(head)
        if rest:
            _put(items[index], rest, value, setting)
        else:
            items[index] = value
        return
    if not isinstance(values, dict):
        raise RecipeError(f"--set {setting!r}: nothing lies below {head!r}.")
    table = cast(dict[str, Any], values)
    if rest:
        if head not in table:
            raise RecipeError(_unknown(head, list(table), f"--set {setting!r}"))
        if table[head] is None:
            table[head] = {}
        _put(table[head], rest, value, setting)
    else:
        table[head] = value  # an unknown last key is named by validation, with its full path


def pick(value: Any, table: Kinds, what: str) -> Any:
    """The part that `{kind: ..., ...}` stands for; parts pass through.

    Raises:
        RecipeError: no kind, or a kind that the table does not list.
    """
    if isinstance(value, Part) or not isinstance(value, dict):
        return value
    fields = dict(cast(dict[str, Any], value))
    kind = str(fields.pop("kind", ""))
    if kind not in table:
        raise RecipeError(_unknown(kind, list(table), what))
    return parse(table[kind], fields, source=f"{what} {kind!r}")


def parse(
    cls: type[R],
    values: Mapping[str, Any],
    *,
    source: str,
    context: Mapping[str, Any] | None = None,
) -> R:
    """A record of `cls` from plain values; every mistake is listed at once.

    Raises:
        RecipeError: unknown keys, wrong types, values out of range.
    """
    try:
        return cls.model_validate(dict(values), context=dict(context or {}))
    except ValidationError as err:
        lines = [_complaint(cls, item) for item in err.errors()]
        raise RecipeError(f"{source}: " + "; ".join(lines)) from err


def _complaint(cls: type[Record], item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        *parents, last = item["loc"]
        return _unknown(str(last), _fields(cls, parents), path)
    given = item.get("input")
    shown = "" if isinstance(given, (dict, list)) else f" (got {given!r})"
    return f"{path}: {item['msg']}{shown}"


def _fields(cls: type[Record], path: Sequence[Any]) -> list[str]:
    """Names of the fields of the record at `path` below `cls`."""
    for step in path:
        field = cls.model_fields.get(str(step))
        nested = field.annotation if field else None
        if isinstance(nested, type) and issubclass(nested, Record):
            cls = nested
    return list(cls.model_fields)


def _unknown(name: str, known: Sequence[str], where: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{where}: unknown {name!r}. {hint}There are: {', '.join(sorted(known))}."


def unknown(name: str, known: Sequence[str], where: str) -> RecipeError:
    """The error for a name that is not in a table, with the near miss."""
    return RecipeError(_unknown(name, known, where))
