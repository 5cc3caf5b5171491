"""The reference as Markdown: one page of every config key, one of every command."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

from sapo_vl.reference.keys import KeyDoc, all_keys

_NOTE = "<!-- Made by `sapo-vl explain --write docs/reference`; a test compares it with the code. -->"


def pages(parser: argparse.ArgumentParser) -> Mapping[str, str]:
    """File name -> Markdown."""
    return {"config.md": config_page(all_keys()), "commands.md": commands_page(parser)}


def write_pages(parser: argparse.ArgumentParser, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages(parser).items():
        (folder / name).write_text(text, encoding="utf-8")


def config_page(keys: Iterable[KeyDoc]) -> str:
    """A table for the keys at the top, then one for every section."""
    lines = [
        "# Every setting",
        "",
        _NOTE,
        "",
        "Written as YAML in a config, or as `key=value` behind any command. `sapo-vl explain KEY` shows these",
        "lines; `--print-config` prints a config with all of them. An unknown key is an error that names the nearest.",
        "",
        "## At the top",
        "",
    ]
    tops, sections = [], []
    for top, group in groupby(keys, key=lambda k: k.key.partition(".")[0].partition(" ")[0]):
        members = list(group)
        (sections if members[0].is_section or "." in members[0].key else tops).append((top, members))
    lines += _table([m for _, members in tops for m in members])
    merged: dict[str, list[KeyDoc]] = {}
    for top, members in sections:
        merged.setdefault(top, []).extend(members)
    for top, members in merged.items():
        lines += ["", f"## {top}", ""]
        if members[0].is_section:
            lines += [members[0].meaning, ""]
            members = members[1:]
        lines += _table(members)
    return "\n".join(lines) + "\n"


def _table(keys: Iterable[KeyDoc]) -> list[str]:
    rows = ["| key | default | values | what it does |", "|---|---|---|---|"]
    for k in keys:
        if k.is_section:
            rows.append(f"| **{k.key}** | | | *{_cell(k.meaning)}* |")
        else:
            default = f"`{_cell(k.default)}`" if k.default else "none: to be given"
            rows.append(f"| `{k.key}` | {default} | {_cell(k.values)} | {_cell(k.meaning)} |")
    return rows


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def commands_page(parser: argparse.ArgumentParser) -> str:
    """A section for every sub-command: what it does, how it is called, its options."""
    lines = ["# Every command", "", _NOTE, "", "`key=value` words, where a command takes them, may stand anywhere."]
    for name, command in _commands(parser):
        usage = " ".join(command.format_usage().removeprefix("usage: ").split())
        lines += ["", f"## {name}", "", _cell(command.description or ""), "", "```text", usage, "```"]
        options = [a for a in command._actions if not isinstance(a, argparse._HelpAction | argparse._SubParsersAction)]
        if options:
            lines += ["", "| option | default | |", "|---|---|---|"]
            lines += [f"| {_option(a)} | {_default(a)} | {_cell(a.help or '')} |" for a in options]
    return "\n".join(lines) + "\n"


def _commands(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                below = list(_commands(command, f"{prefix}{name} "))
                yield from below or [(f"{prefix}{name}", command)]


def _option(action: argparse.Action) -> str:
    value = action.metavar or ("" if action.nargs == 0 else "|".join(map(str, action.choices or [action.dest.upper()])))
    if isinstance(value, tuple):
        value = " ".join(value)
    names = ", ".join(action.option_strings)
    return f"`{_cell(f'{names} {value}'.strip())}`"


def _default(action: argparse.Action) -> str:
    if action.default in (None, False, "", [], argparse.SUPPRESS):
        return ""
    return f"`{action.default}`"
