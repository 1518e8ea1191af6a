"""A running HAProxy takes new keys and certificates without losing a request."""

import itertools
import ssl
import subprocess
import time
from concurrent import futures
from pathlib import Path

import grpc
import httpx
import pytest
import samclip

from services.front_door import keys, reload
from services.gateway.app import CERTIFICATE_END
from services.settings import Settings, SettingsError
from tests import tls
from tests.door import FIRST, SECOND, Door, answering, asked, opened


def test_keys_change_without_a_restart(guarded: Door) -> None:
    file = guarded.settings.api_keys_file
    assert file
    many = [keys.Key(keys.digest(f"key-{i}"), f"n{i}", ("read",), "t") for i in range(120)]
    keys.write(file, [FIRST, *many])
    reload.load_keys(guarded.admin, file)
    assert guarded.http.get("/classify", headers={"x-api-key": "key-119"}).is_success
    assert guarded.http.get("/classify", headers={"x-api-key": "first-key"}).is_success
    assert guarded.http.get("/classify", headers={"x-api-key": "second, key"}).status_code == 401
    file.write_text("a key in the clear\n")
    with pytest.raises(SettingsError, match="line 1"):
        reload.load_keys(guarded.admin, file)
    assert guarded.http.get("/classify", headers={"x-api-key": "first-key"}).is_success


@pytest.mark.parametrize("bad", [b"", b"\xff\xfe", b"no certificate", None], ids=repr)
def test_a_certificate_is_renewed_without_a_restart_and_a_bad_one_keeps_no_good_one_out(
    tmp_path: Path, bad: bytes | None
) -> None:
    """With ``None``, the file is read after the certificate is written and before its key is."""
    serve = answering()
    first, second = (tls.certificate(tmp_path, name) for name in ("first-ca", "second-ca"))
    file = tls.certificate(tmp_path, "localhost", first)
    part = file.read_bytes().partition(b"-----BEGIN PRIVATE")[0]
    with opened(serve, ready=False, tls_cert_file=file) as door:
        file.write_bytes(part if bad is None else bad)
        with pytest.raises(RuntimeError, match="HAProxy rejected"):
            reload.load_certificate(door.admin, file)
        assert asked(door, samclip.credentials(first)) == b"hello"
        # A comment may have any encoding: ``openssl pkcs12`` writes the owner's name.
        renewed = tls.certificate(tmp_path, "localhost", second).read_bytes()
        file.write_bytes("friendlyName: Müller\n".encode("latin-1") + renewed)
        reload.load_certificate(door.admin, file)
        assert asked(door, samclip.credentials(second)) == b"hello"
        with pytest.raises(grpc.RpcError):
            asked(door, samclip.credentials(first))


def test_the_end_of_a_certificate_is_passed_on_and_follows_a_renewed_one(tmp_path: Path) -> None:
    serve = answering()
    ca = tls.certificate(tmp_path, "ca")
    file = tls.certificate(tmp_path, "localhost", ca)
    ends = [tls.end(file)]
    context = ssl.create_default_context(cafile=ca)
    with (
        opened(serve, ready=False, tls_cert_file=file) as door,
        httpx.Client(verify=context, headers={CERTIFICATE_END: "made up"}) as scraper,
    ):
        reload.load_certificate(door.admin, file)
        url = f"https://localhost:{door.settings.http_port}/metrics"
        assert scraper.get(url).is_success
        tls.certificate(tmp_path, "localhost", ca, days=400)
        ends.append(tls.end(file))
        reload.load_certificate(door.admin, file)
        assert scraper.get(url).is_success
        assert scraper.get(url.replace("metrics", "healthz")).is_success
    seen = [headers.get(CERTIFICATE_END) for _, headers in serve.requests]
    assert seen == [*(str(int(end)) for end in ends), None]


def test_a_file_that_changes_is_handed_in_and_a_bad_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    keys.write(file, [FIRST])
    serve = answering()
    with opened(serve, api_keys_file=file) as door, futures.ThreadPoolExecutor(1) as pool:
        watching = pool.submit(reload.watch, door.process, door.settings, door.admin)
        assert door.http.get("/classify", headers={"x-api-key": "second, key"}).status_code == 401
        file.write_text("nonsense\n")
        keys.write(file, [FIRST, SECOND])
        while not door.http.get("/classify", headers={"x-api-key": "second, key"}).is_success:
            time.sleep(0.05)
        file.unlink()
        door.process.terminate()
        assert watching.result() != 0


def test_nothing_is_reported_while_the_proxy_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "LOOK_S", 0.02)
    keys.write(tmp_path / "keys", [FIRST])
    settings = Settings.load(api_keys_file=tmp_path / "keys")
    with subprocess.Popen(["sleep", "0.2"]) as process:
        reload.watch(process, settings, tmp_path / "not there yet")
    assert caplog.records == []


def test_a_clock_that_is_set_back_is_told_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead_s = itertools.chain([7200.0, 7199.0, 7203.0], itertools.repeat(3603.0))
    monkeypatch.setattr(reload, "_clock_ahead_s", lambda: next(ahead_s))
    monkeypatch.setattr(reload, "LOOK_S", 0.02)
    with subprocess.Popen(["sleep", "0.5"]) as process:
        assert reload.watch(process, Settings.load(), Path("no admin")) == 0
    (record,) = caplog.records
    assert "set back by 3600 s" in record.message
