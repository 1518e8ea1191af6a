"""``samclip keys`` keeps hashes alone, and changes the file of keys without losing any."""

import fcntl
import io
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from samclip_core import guarded
from services.front_door import keys
from services.front_door.keys import Key
from services.settings import SettingsError

HASH = keys.digest("a key of the tests, long enough")


def run(file: Path, *words: str) -> int:
    return keys.main([words[0], "--file", str(file), *words[1:]])


def test_a_key_is_printed_once_and_kept_hashed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    assert run(file, "add", "ann") == 0
    first = capsys.readouterr().out.strip()
    scopes = ("--scope", "read", "--scope", "index")
    assert run(file, "add", "bob", *scopes, "--tenant", "acme", "--rate", "20") == 0
    second = capsys.readouterr().out.strip()
    assert keys.read(file) == [
        Key(keys.digest(first), "ann", ("read",), "ann"),
        Key(keys.digest(second), "bob", ("read", "index"), "acme", 20),
    ]
    assert len(first) >= 43
    assert first not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_of_the_past_is_taken_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a key of the tests, long enough\n"))
    assert run(tmp_path / "keys", "add", "old", "--tenant", "-", "--from-stdin") == 0
    assert capsys.readouterr().out == ""
    assert keys.read(tmp_path / "keys") == [Key(HASH, "old", ("read",), "-")]
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    assert run(tmp_path / "keys", "add", "short", "--from-stdin") == 1
    assert "a key of 6 characters" in capsys.readouterr().err


def test_keys_are_listed_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    keys.write(file, [Key(HASH, "ann", ("read",), "acme"), Key("0" * 64, "bob", ("read",), "bob")])
    assert run(file, "list") == 0
    shown = capsys.readouterr().out
    assert "ann" in shown
    assert HASH not in shown
    file.chmod(0o640)
    assert run(file, "remove", "ann") == 0
    assert [key.name for key in keys.read(file)] == ["bob"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640  # the group keeps its access
    assert run(file, "remove", "ann") == 1
    assert "no key 'ann'" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a file's owner")
def test_root_leaves_the_file_to_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    keys.write(file, [Key(HASH, "ann", ("read",), "ann")])
    os.chown(file, 10001, 10002)
    file.chmod(0o640)
    assert run(file, "add", "bob") == 0
    held = file.stat()
    assert (held.st_uid, held.st_gid, stat.S_IMODE(held.st_mode)) == (10001, 10002, 0o640)


def test_a_file_that_would_change_its_owner_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    keys.write(file, [Key(HASH, "ann", ("read",), "ann")])

    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    assert run(file, "add", "bob") == 1
    assert "change it as that user or as root" in capsys.readouterr().err
    assert [key.name for key in keys.read(file)] == ["ann"]
    assert {path.name for path in tmp_path.iterdir()} == {"keys", ".keys.lock"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("add", "ann"), "a key 'ann' exists already"),
        (("add", "a b"), "a name and a tenant"),
        (("add", "eve", "--tenant", "a@b"), "a name and a tenant"),
        (("add", "eve", "--rate", "-1"), "whole numbers"),
    ],
)
def test_what_cannot_be_a_key_is_refused_and_nothing_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    file = tmp_path / "keys"
    keys.write(file, [Key(HASH, "ann", ("read",), "ann")])
    before = file.read_text()
    assert run(file, *words) == 1
    assert message in capsys.readouterr().err
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("my-old-secret", "samclip keys add NAME --from-stdin"),
        (f"{HASH} ann read ann 0", "expected a hash of 64 hex digits"),
        (f"{HASH} ann read,write ann 0 0", "unknown scope write, expected read, index, admin"),
        (f"{HASH} ann read acme/x 0 0", "expected a name and a tenant"),
        (f"{HASH} ann read acme -1 0", "whole numbers"),
        (f"{HASH} bob read acme ٣ 0", "whole numbers"),
        (f"{HASH} bob read acme 0 0\r", "whole numbers"),
        (f"{HASH} bob\u2003read acme 0 0", "expected a hash"),
        (f"{HASH} bob read acme 0 0", "the same sha256"),
    ],
)
def test_a_line_that_is_not_right_is_named_and_never_shown(
    tmp_path: Path, line: str, message: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n{HASH} eve read eve 0 0\n{line}\n")
    with pytest.raises(SettingsError, match=message) as caught:
        keys.read(file)
    assert "my-old-secret" not in str(caught.value)
    if "same" not in message:
        assert f"line 4 of {file}" in str(caught.value)


def test_without_a_file_it_says_where_one_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SAMCLIP_API_KEYS_FILE", raising=False)
    assert keys.main(["list"]) == 1
    assert "--file or SAMCLIP_API_KEYS_FILE" in capsys.readouterr().err


def test_keys_that_are_added_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    names = [f"ann-{number}" for number in range(6)]
    with ThreadPoolExecutor(len(names)) as pool:  # a lock excludes threads as it does processes
        assert not any(pool.map(lambda name: run(file, "add", name), names))
    assert sorted(key.name for key in keys.read(file)) == names


def test_other_users_who_lock_the_folder_do_not_delay_a_revocation(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    keys.write(file, [Key(HASH, "ann", ("read",), "ann")])
    folder = os.open(tmp_path, os.O_RDONLY)  # any user with read access can lock it
    try:
        fcntl.flock(folder, fcntl.LOCK_SH)
        assert run(file, "remove", "ann") == 0
    finally:
        os.close(folder)
    assert keys.read(file) == []
    assert stat.S_IMODE((tmp_path / ".keys.lock").stat().st_mode) == 0o600


def test_a_lock_that_is_a_link_is_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It could name a file that another user locks."""
    (tmp_path / "elsewhere").touch()
    (tmp_path / ".keys.lock").symlink_to("elsewhere")
    assert run(tmp_path / "keys", "add", "ann") == 1
    assert ".keys.lock" in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a file's owner")
def test_a_lock_that_root_has_made_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 10001, 10001)
    assert run(tmp_path / "keys", "add", "ann") == 0
    assert (tmp_path / ".keys.lock").stat().st_uid == 10001


def test_a_list_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    keys.write(file, [Key(HASH, "ann", ("read",), "ann")])
    assert run(file, "list") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_a_file_of_another_user_names_the_user_who_must_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root the tests could read any file."""

    def refused(file: Path, most: int = 0) -> bytes:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(guarded, "read", refused)
    with pytest.raises(SettingsError, match=f"Permission denied.*: let user {os.getuid()} read it"):
        keys.read(tmp_path / "keys")
