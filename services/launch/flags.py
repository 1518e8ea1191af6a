"""Every setting as a flag: its name, its values and its help come from ``services.settings``."""

import argparse
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from samclip.cli.usage import Parser

from services.settings import Settings


def add(parser: Parser) -> None:
    """Add --config and a flag per setting. The settings check the values."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file (TOML)")
    settings = parser.add_argument_group(
        "settings", "Also in the --config file (TOML), or in the environment as SAMCLIP_<NAME>."
    )
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "heads":
            settings.add_argument(
                "--head", dest=name, action="append", metavar="SPEC", help=_help(field)
            )
        elif field.annotation is bool:
            settings.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=None, help=_help(field)
            )
        else:
            settings.add_argument(flag, **_values(name, field), help=_help(field))


def read(args: argparse.Namespace) -> Settings:
    """Return the settings of the flags, the environment and the file. Raises SettingsError."""
    flags = {name: getattr(args, name) for name in Settings.model_fields}
    return Settings.load(args.config, **flags)


def _values(name: str, field: Any) -> dict[str, Any]:
    if get_origin(field.annotation) is Literal:
        return {"choices": get_args(field.annotation)}
    kinds = {int: "N", float: "N"}
    return {"metavar": kinds.get(field.annotation, name.rpartition("_")[2].upper())}


def _help(field: Any) -> str:
    """Return the first sentence of a setting's description as plain text, and its default."""
    text = " ".join((field.description or "").split()).partition(". ")[0]
    text = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", text).replace("`", "").replace("%", "%%")
    if not field.repr:
        text += "; the environment hides it from other users of this machine, a flag does not"
    return text if field.default in (None, "", False, ()) else f"{text} ({field.default})"
