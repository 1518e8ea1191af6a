"""Help, completion and the commands of other packages."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from samclip import cli
from samclip.cli import commands

from tests.checkout import sources
from tests.unit.client.conftest import Captured

REQUESTS = (*(command.name for command in commands.REQUESTS), "completion")
NESTED = (
    *(("keys", "add"), ("keys", "list"), ("keys", "remove")),
    *(("probe", "fit"), ("probe", "eval")),
    *(("cache", "stats"), ("cache", "purge"), ("cache", "warm")),
)
ALL = [(), *((name,) for name in (*REQUESTS, *commands.PARTS)), *NESTED]


@pytest.fixture(autouse=True)
def terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_fits_80_columns_and_has_two_examples(
    words: tuple[str, ...], capsys: Captured
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*words, "--help"])
    assert exit_.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    examples = lines[lines.index("examples:") + 1 :]
    assert sum("samclip " in line for line in examples) >= 2, examples


WITHOUT_EXTRAS = """
import sys
from pathlib import Path

from samclip import cli
from samclip.cli import commands

cli.add_services(Path(cli.samclip.__path__[0]))
extras = ("packaging fastapi ray torch pyarrow cv2 pydantic pydantic_settings onnx_ir onnxscript "
    "onnxruntime openvino huggingface_hub sklearn safetensors redis fsspec prometheus_client mcp "
    "tqdm")
sys.modules.update(dict.fromkeys(extras.split()))  # as if they were not installed
for name in commands.PARTS:
    try:
        status = cli.main([name, "--help"])
    except SystemExit as end:
        status = end.code
    print(f"exit status of {name}: {status}", flush=True)
"""


def test_help_is_shown_without_the_packages_of_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS],
        env=os.environ | {"PYTHONPATH": sources(), "COLUMNS": "80"},
        capture_output=True,
        text=True,
    )
    helps = re.split("exit status of .*: ", done.stdout)
    assert done.stdout.count("exit status of") == len(commands.PARTS), done.stderr
    assert {text.split()[0] for text in helps[1:]} == {"0"}
    for name, text in zip(commands.PARTS, helps, strict=False):
        assert f"samclip {name} " in text.replace("\n", " ")


def test_the_stored_helps_are_those_of_the_parsers() -> None:
    """Otherwise write them again as ``samclip.cli.commands`` says at its end."""
    stored = json.loads(commands.HELPS.read_text())
    found = commands.helps()
    assert found.keys() == stored.keys()
    for words, text in found.items():
        assert text.split() == stored[words].split()


def test_help_names_every_command(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for command in (*REQUESTS, *commands.PARTS):
        assert f"\n    {command} " in text
    first, rest = (names.split() for names in commands.GROUPS.values())
    assert 10 <= len(first) <= 14
    assert (
        text.index(f"\n    {first[-1]} ") < text.index("the rest") < text.index(f"\n    {rest[0]} ")
    )


def test_ids_of_delete_are_not_required_because_of_all(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        cli.main(["delete"])
    assert capsys.readouterr().err.endswith("arguments are required: COLLECTION\n")


def test_no_command_says_how_to_begin(capsys: Captured) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    shown = [line.partition("#")[0] for line in text.splitlines() if "  samclip " in line]
    assert [line.split()[1] for line in shown] == ["serve", "classify", "segment"]
    for line in shown:
        parsed = shlex.split(line)[1:]
        if parsed[0] != "serve":
            commands.parser().parse_args(parsed)
    assert max(map(len, text.splitlines())) <= 80


def test_each_command_has_one_heading() -> None:
    shown = [name for names in commands.GROUPS.values() for name in names.split()]
    assert sorted(shown) == sorted((*REQUESTS, *commands.PARTS))


@pytest.mark.parametrize(
    ("words", "guess"),
    [
        (["clasify"], "Did you mean classify?"),
        (["status", "--format", "tabel"], "Did you mean table?"),
        (["embed", "--format", "xyz"], "choose from"),
        (["embed", "a.jpg", "--fromat", "json"], "option: --fromat. Did you mean --format?"),
        (["serve", "--grpc-prot=1"], "Did you mean --grpc-port"),
        (["embed", "a.jpg", "--xyz"], "unrecognized arguments: --xyz"),
    ],
)
def test_a_wrong_word_is_answered_with_those_like_it(
    words: list[str], guess: str, capsys: Captured
) -> None:
    with pytest.raises(SystemExit):
        cli.main(words)
    assert guess in capsys.readouterr().err


def test_every_option_says_what_it_does() -> None:
    for parser in parsers(commands.parser()):
        for action in parser._actions:
            if action.option_strings:
                assert action.help, (parser.prog, action.option_strings)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from parsers(one)


def test_the_examples_are_valid_commands(capsys: Captured) -> None:
    """Parse each example of a request up to its redirection."""
    for parser in parsers(commands.parser()):
        for line in (parser.epilog or "").splitlines()[1:]:
            words = shlex.split(line.partition(" > ")[0])
            if words[0] == "samclip" and words[1] in REQUESTS:
                commands.parser().parse_args(words[1:])


def test_parts_are_called_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    part = ModuleType("training.train")
    part.main = lambda argv: len(argv)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "training.train", part)
    assert cli.main(["train", "--recipe", "debug"]) == 2


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setitem(
        commands.PARTS, "serve", commands.PARTS["serve"]._replace(module="no_such_package.serve")
    )
    assert cli.main(["serve"]) == 1
    message = capsys.readouterr().err
    assert "samclip serve needs no_such_package" in message
    assert "pip install -e '.[serve]'" in message


def test_bash_completes_commands_options_and_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (tmp_path / "cat.jpg").touch()
    (tmp_path / "masks").mkdir()
    monkeypatch.chdir(tmp_path)
    heavy = {"train", "eval", "convert", "export"}  # these import torch: as if it were missing
    for name in heavy:
        monkeypatch.setitem(
            commands.PARTS, name, commands.PARTS[name]._replace(module="no_such_package")
        )
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for words, expected in (
        ("samclip seg", {"segment"}),
        ("samclip tra", {"train"}),
        ("samclip segment --format js", {"json", "jsonl"}),
        ("samclip serve --redis-u", {"--redis-url"}),
        ("samclip keys rem", {"remove"}),
        ("samclip classify ca", {"cat.jpg"}),
        ("samclip everything cat.jpg --out ma", {"masks"}),
    ):
        assert complete(script, words.split()) == expected, words


def complete(script: str, words: list[str]) -> set[str]:
    """Return what bash offers for the last of these words."""
    line = " ".join(f"'{word}'" for word in words)
    done = subprocess.run(
        ["bash", "--norc"],
        input=f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}\n"
        '_shtab_samclip; printf "%s\\n" "${COMPREPLY[@]}"\n',
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in done.stdout.split()}
