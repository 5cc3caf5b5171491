"""Every key of the config: its default, its values, and the comment that stands beside it in the source."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sapo_vl.config import RunConfig
from sapo_vl.losses import LOSSES
from sapo_vl.strict import Strict

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDoc:
    """One setting, or one section of settings."""

    key: str  # as it is written in an override: rollout.vllm.sleep
    values: str  # what it may be: "int >= 1", "adamw or muon"; "" for a section
    default: str  # as YAML; "" for a section
    meaning: str  # one paragraph

    @property
    def is_section(self) -> bool:
        return not self.values


def all_keys() -> list[KeyDoc]:
    """Every key of a run's config in the order of the sections, sections before what they hold; at last the settings
    that each loss has of its own, under `loss.params`."""
    found = list(_section_keys(RunConfig, RunConfig(), ""))
    for name, (_, params) in LOSSES.items():
        for one in _section_keys(params, params(), f"{name}: "):
            found.append(
                KeyDoc(**(_fields(one) | {"key": f"loss.params.{one.key.removeprefix(f'{name}: ')} ({name})"}))
            )
    return found


def _fields(doc: KeyDoc) -> dict[str, str]:
    return {"key": doc.key, "values": doc.values, "default": doc.default, "meaning": doc.meaning}


def _section_keys(section: type[BaseModel], given: BaseModel, prefix: str) -> Iterator[KeyDoc]:
    comments = _comments(section)
    for name, field in section.model_fields.items():
        inner, value = _model_of(field.annotation), getattr(given, name)
        meaning = comments.get(name, "")
        if inner is None:
            default = "" if field.default is PydanticUndefined and field.default_factory is None else _yaml(value)
            yield KeyDoc(key=prefix + name, values=_values(field), default=default, meaning=meaning)
            continue
        about = " ".join((inspect.getdoc(inner) or "").split())
        if value is None:
            meaning = f"{about} Default: null. {meaning}"
        yield KeyDoc(key=prefix + name, values="", default="", meaning=meaning or about)
        yield from _section_keys(inner, inner() if value is None else value, f"{prefix}{name}.")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The section class of a field, perhaps optional; None if the field is a value."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((p for p in parts if isinstance(p, type) and issubclass(p, Strict)), None)


def _yaml(value: Any) -> str:
    """As one line that an override may hold."""
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, float):
        return f"{value:g}"
    if value == "":
        return '""'
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
    return text.removesuffix("...").strip()


def _values(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(m, name):g}" for m in field.metadata for name, sign in _BOUNDS.items() if hasattr(m, name)
    ]
    return " ".join([_type_text(field.annotation), *([" and ".join(bounds)] if bounds else [])])


def _type_text(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join('""' if a == "" else str(a) for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _type_text(a) for a in args)
    if origin is tuple:
        shown = [_type_text(a) for a in args if a is not Ellipsis]
        return f"list of {shown[0]}" if Ellipsis in args else f"[{', '.join(shown)}]"
    if origin is list:
        return f"list of {_type_text(args[0])}"
    if origin is dict:
        return f"mapping of {_type_text(args[0])} to {_type_text(args[1])}"
    return {"str": "text", "bool": "true or false", "Any": "anything"}.get(
        getattr(annotation, "__name__", ""), getattr(annotation, "__name__", str(annotation))
    )


def _comments(section: type[BaseModel]) -> dict[str, str]:
    """Field -> what its source says of it: the comment lines right above, the comment behind, the string below.

    Fields of the bases come first, so that a class may say more of them.
    """
    found: dict[str, str] = {}
    for owner in reversed(section.__mro__):
        if not (issubclass(owner, Strict) and owner is not Strict):
            continue
        source = textwrap.dedent(inspect.getsource(owner))
        lines = source.splitlines()
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, [*body.body[1:], None], strict=True):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            said = [*_above(lines, node.lineno - 1), _behind(lines, node)]
            if (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                said.append(after.value.value)
            text = " ".join(" ".join(said).split())
            if text:
                found[node.target.id] = text
    return found


def _above(lines: list[str], line: int) -> list[str]:
    """The comment lines that end right above `lines[line]`."""
    first = line
    while first > 0 and lines[first - 1].strip().startswith("#"):
        first -= 1
    return [text.strip().removeprefix("#").strip() for text in lines[first:line]]


def _behind(lines: list[str], node: ast.AnnAssign) -> str:
    assert node.end_lineno is not None and node.end_col_offset is not None
    rest = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip()
    return rest.removeprefix("#").strip() if rest.startswith("#") else ""
