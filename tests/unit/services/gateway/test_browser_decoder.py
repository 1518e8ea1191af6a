"""What npm brings for the browser, from an npm of this test."""

import base64
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from services.gateway import browser_decoder
from services.gateway.browser_decoder import PACKED, PROGRAM, SCRIPT


def package() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in {SCRIPT: b"a script", PROGRAM: b"a program"}.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an npm that packs a package with the known digest."""
    (tmp_path / "bin").mkdir()
    packed, program = tmp_path / "package.tgz", tmp_path / "bin" / "npm"
    packed.write_bytes(package())
    program.write_text(f"#!/bin/sh\n/bin/cp {packed} onnxruntime-web.tgz\n")
    program.chmod(0o755)
    digest = base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
    monkeypatch.setattr(browser_decoder, "SHA512", digest)
    monkeypatch.setattr(browser_decoder, "CACHED", tmp_path / "cache")
    monkeypatch.setattr(browser_decoder, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setenv("PATH", str(program.parent))
    return program


def test_npms_files_are_kept_and_found_where_they_are_wanted(npm: Path, tmp_path: Path) -> None:
    assert browser_decoder.folder(wanted=True) is None
    browser_decoder.prepare()
    cache = tmp_path / "cache"
    assert (cache / SCRIPT).read_bytes() == b"a script"
    assert gzip.decompress((cache / PACKED).read_bytes()) == b"a program"
    assert browser_decoder.folder(wanted=True) == cache
    assert browser_decoder.folder(wanted=False) is None
    npm.unlink()
    browser_decoder.prepare()  # nothing is fetched again
    cache.rename(tmp_path / "bundled")
    assert browser_decoder.folder(wanted=False) == tmp_path / "bundled"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "there is no npm"),
        ("echo no network >&2; exit 1", "no network"),
        ("echo another > onnxruntime-web.tgz", "differs from its known digest"),
    ],
)
def test_without_npm_or_with_another_package_the_service_starts_all_the_same(
    npm: Path, capsys: pytest.CaptureFixture[str], script: str | None, reason: str
) -> None:
    if script is None:
        npm.unlink()
    else:
        npm.write_text(f"#!/bin/sh\n{script}\n")
    browser_decoder.prepare()
    assert reason in capsys.readouterr().err
    assert browser_decoder.folder(wanted=True) is None
