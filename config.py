"""Records: frozen, validated, and a plain YAML file at once.

A record round-trips through YAML, `path=value` overrides any part of it, an unknown key is an
error that names the near miss, and its digest says whether two runs mean the same thing.
No import strings and no code: a `kind` is looked up in the table of contents of a folder.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from .errors import RecipeError


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


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
    return yaml.dump(plain(record), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def from_yaml(text: str | bytes, *, source: str) -> dict[str, Any]:
    """Plain values of a YAML mapping; never code, never objects.

    Raises:
        RecipeError: the text is no YAML, has aliases or tags, or no mapping at its top.
    """
    if len(text) > 1_000_000:
        raise RecipeError(f"{source} is larger than 1 MB, too large for a recipe.")
    values = _read(text, source)
    if not isinstance(values, dict):
        raise RecipeError(f"{source} must hold `key: value` lines, not a {type(values).__name__}.")
    return cast(dict[str, Any], values)


_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9_]*)",
    "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
}


class _Loader(yaml.SafeLoader):
    """Plain values alone, as YAML 1.2 means them: 1e-4 is a number, `yes` and dates are strings.

    Aliases are refused (a few lines of them stand for gigabytes), tags and repeated keys too.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _mistake("aliases (*name) are refused, write the value out", event)
        if getattr(event, "tag", None):
            raise _mistake("tags (!name) are refused, write plain values", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise _mistake("a key stands here twice", node)
        return found


def _mistake(what: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=where.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that `_Loader` would read as something else."""

    def represent_str(self, data: str) -> Any:
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None  # else read as line breaks
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"({_pattern})\Z"), None)
_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"({_SCALARS['float']})\Z"), list("-+.0123456789")
)


def _read(text: str | bytes, source: str) -> Any:
    try:
        loader = _Loader(text)  # reads the first characters already
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise RecipeError(f"{source} is not YAML: {' '.join(str(err).split())}") from err


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
        _put(values, path.strip().split("."), _read(text, f"--set {setting!r}"), setting)
    return values


def _put(values: Any, path: list[str], value: Any, setting: str) -> None:
    head, *rest = path
    if isinstance(values, list):
        items = cast(list[Any], values)
        names = [item.get("kind") if isinstance(item, dict) else None for item in items]
        if not (head in names or (head.isdecimal() and int(head) < len(items))):
            known = [name for name in names if name] or [str(place) for place in range(len(items))]
            raise RecipeError(_unknown(head, known, f"--set {setting!r}"))
        index = names.index(head) if head in names else int(head)
        if rest:
            _put(items[index], rest, value, setting)
        else:
            items[index] = value
        return
    if not isinstance(values, dict):
        raise RecipeError(f"--set {setting!r}: {head!r} lies below a plain value.")
    table = cast(dict[str, Any], values)
    if rest:
        if table.get(head) is None:  # a part that the file leaves out; validation knows it or not
            table[head] = {}
        _put(table[head], rest, value, setting)
    else:
        table[head] = value  # an unknown last key is named by validation, with its full path


def pick(value: Any, table: Kinds, what: str) -> Any:
    """The part that `{kind: ..., ...}` stands for; parts pass through. For a record's validator.

    Raises:
        PydanticCustomError: no kind, one that the table does not list, or mistakes in the part;
            `parse` lists it beside the record's other mistakes.
    """
    if isinstance(value, Part) or not isinstance(value, dict):
        return value
    fields = dict(cast(dict[str, Any], value))
    kind = str(fields.pop("kind", ""))
    try:
        if kind not in table:
            raise unknown(kind, list(table), what)
        return parse(table[kind], fields, source=f"{what} {kind!r}")
    except RecipeError as err:
        raise PydanticCustomError("part", "{said}", {"said": str(err)}) from err


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
        lines = [_complaint(cls, item).removesuffix(".") for item in _meant(err.errors())]
        raise RecipeError(f"{source}: {'; '.join(lines)}.") from err


def _meant(items: Sequence[Any]) -> list[Any]:
    """All but those that call a list, in which others find a mistake, no string."""
    lists = [
        item["loc"][:n]
        for item in items
        for n in range(len(item["loc"]) - 1)
        if _is_list(item["loc"][n])
    ]
    return [item for item in items if item["loc"][:-1] not in lists]


def _is_list(step: Any) -> bool:
    """Whether a step of a mistake's path is no field but the list that a union allows."""
    return str(step).startswith("tuple[")


def _complaint(cls: type[Record], item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"] if not _is_list(part))
    if item["type"] == "extra_forbidden":
        *parents, last = item["loc"]
        return _unknown(str(last), _fields(cls, parents), path)
    if item["type"] == "part":
        return item["ctx"]["said"]
    if item["type"] == "value_error":
        return ": ".join([*([path] if path else []), str(item["ctx"]["error"])])
    given = item.get("input")
    shown = "" if isinstance(given, (dict, list)) else f" (got {given!r})"
    return f"{path}: {item['msg']}{shown}"


def _fields(cls: type[Record], path: Sequence[Any]) -> list[str]:
    """Names of the fields of the record at `path` below `cls`."""
    for step in path:
        field = cls.model_fields.get(str(step))
        cls = next(_records(field.annotation), cls) if field else cls
    return list(cls.model_fields)


def _records(annotation: Any) -> Iterator[type[Record]]:
    """The records that a field may hold, or its items."""
    if isinstance(annotation, type) and issubclass(annotation, Record):
        yield annotation
    for one in get_args(annotation):
        yield from _records(one)


def _unknown(name: str, known: Sequence[str], where: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{where}: unknown {name!r}. {hint}There are: {', '.join(sorted(known))}."


def unknown(name: str, known: Sequence[str], where: str) -> RecipeError:
    """The error for a name that is not in a table, with the near miss."""
    return RecipeError(_unknown(name, known, where))
