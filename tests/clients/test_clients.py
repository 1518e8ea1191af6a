"""Real clients of other protocols, unmodified, against the real service."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image

from services.batching.priority import Priority
from services.gateway.adapters.label_studio.files import Files
from services.settings import Settings
from tests.checkout import ROOT
from tests.clients.conftest import (
    FIFTYONE,
    KEY,
    LABEL_STUDIO,
    PYTHON,
    TOKEN,
    TYPESCRIPT,
    X_ANYLABELING,
    need,
)
from tests.e2e.conftest import Service

pytestmark = pytest.mark.clients
Run = Callable[..., None]


@pytest.fixture
def run(weights: Path) -> Run:
    """Return a function that runs a script of this folder.

    The script asserts what it finds and then prints "ok". Its variable TRAINED is empty if the
    answers are those of random weights.
    """
    trained = "" if weights.name.startswith("tiny") else "yes"

    def run_script(script: str, *arguments: object, python: Path = PYTHON) -> None:
        command = [python, ROOT / "tests/clients" / script, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "client"), "TRAINED": trained}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "ok"

    return run_script


@pytest.fixture(scope="module")
def cat(tmp_path_factory: pytest.TempPathFactory, photo: bytes) -> Path:
    path = tmp_path_factory.mktemp("photo") / "cat.jpg"
    path.write_bytes(photo)
    return path


def test_openai(run: Run, service: Service, cat: Path) -> None:
    need("openai", "numpy")
    run("openai_client.py", service.url, KEY, cat)


def test_tritonclient(run: Run, service: Service, cat: Path) -> None:
    need("tritonclient.http", "tritonclient.grpc")
    run("triton_client.py", service.url.removeprefix("http://"), service.address, KEY, cat)


def test_label_studio(
    run: Run, service: Service, label_studio: str, cat: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new.jpg"  # a file that no other test has sent
    Image.open(cat).save(new, quality=80)
    python = LABEL_STUDIO / "python"
    run("label_studio_client.py", label_studio, TOKEN, service.url, KEY, new, python=python)


@pytest.mark.parametrize("kind", ["legacy", "personal"])
async def test_both_kinds_of_label_studios_tokens_fetch_an_upload(
    label_studio: str, cat: Path, kind: str
) -> None:
    headers, file = {"authorization": f"Token {TOKEN}"}, {"file": ("cat.jpg", cat.read_bytes())}
    with httpx.Client(base_url=label_studio, headers=headers, timeout=60) as ask:
        project = ask.post("/api/projects", json={"title": kind}).json()["id"]
        sent = ask.post(f"/api/projects/{project}/import", files=file)
        upload = ask.get(f"/api/import/file-upload/{sent.json()['file_upload_ids'][0]}").json()
        token = TOKEN if kind == "legacy" else ask.post("/api/token/").json()["token"]
    files = Files(Settings(label_studio_url=label_studio, label_studio_token=token))
    async with files.opened(f"/data/{upload['file']}", Priority()) as image:
        assert image.encoded == cat.read_bytes()


def test_fiftyone(run: Run, service: Service, cat: Path) -> None:
    need("fiftyone", python=FIFTYONE)
    run("fiftyone_client.py", service.address, KEY, cat, python=FIFTYONE)


def test_x_anylabeling(run: Run, service: Service, cat: Path, tmp_path: Path) -> None:
    need("anylabeling.views.mainwindow", python=X_ANYLABELING)
    photo = shutil.copy(cat, tmp_path)
    run("x_anylabeling_client.py", service.url, KEY, photo, python=X_ANYLABELING)


def test_typescript(
    run: Run, service: Service, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (TYPESCRIPT / "node_modules").exists() or not (node := shutil.which("node")):
        pytest.skip(f"no Node.js, or no packages in {TYPESCRIPT}: run make clients")
    for name in ("client.ts", "package.json"):
        shutil.copy(ROOT / "tests/clients/typescript" / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(TYPESCRIPT / "node_modules")
    (tmp_path / "openapi.json").write_text(httpx.get(f"{service.url}/openapi.json").text)
    monkeypatch.chdir(tmp_path)
    strict = "--strict --noUncheckedIndexedAccess --exactOptionalPropertyTypes"
    for command in (
        "openapi-typescript openapi.json --output api.d.ts",
        f"tsc {strict} --module nodenext --target es2022 --types node client.ts",
    ):
        done = subprocess.run(
            [node, f"node_modules/.bin/{command.split()[0]}", *command.split()[1:]]
        )
        assert done.returncode == 0
    run(tmp_path / "client.js", service.url, KEY, cat, python=Path(node))
