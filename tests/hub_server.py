"""A stand-in for the Hugging Face hub: the files and commits of one model repository."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.http_server import Handler, serving

COMMIT = "0" * 39 + "1"


class Hub:
    """The content of the repository: the files of its last commit, and all commit messages."""

    def __init__(self) -> None:
        self.address = ""
        self.files: dict[str, bytes] | None = None
        self.objects: dict[str, bytes] = {}  # large files by their SHA-256
        self.messages: list[str] = []
        self.about: dict[str, str] = {}  # more headers of every file
        self.card: Any = {}  # metadata of the model card
        self.commit = COMMIT
        self.refusals: dict[str, dict[str, Any]] = {}  # status and headers, by parts of addresses

    def post(self, path: str, body: bytes) -> Any:
        if path.endswith("/validate-yaml"):
            return {"errors": [], "warnings": []}
        if path.endswith("/objects/batch"):  # Git LFS
            return {
                "transfer": "basic",
                "objects": [*map(self._upload, json.loads(body)["objects"])],
            }
        if path.endswith("/repos/create"):
            self.files = self.files if self.files is not None else {".gitattributes": b""}
            return {"url": f"{self.address}/me/small"}
        if "/preupload/" in path:
            return {"files": [self._mode(file["path"]) for file in json.loads(body)["files"]]}
        assert "/commit/" in path, path
        for line in body.splitlines():
            self._apply(**json.loads(line))
        return {"commitUrl": f"{self.address}/me/small/commit/{COMMIT}", "commitOid": COMMIT}

    def get(self, path: str) -> Any:
        siblings = [{"rfilename": name} for name in sorted(self.files or {})]
        tree = [
            {"type": "file", "path": name, "size": len(content), "oid": _sha(content)}
            for name, content in (self.files or {}).items()
        ]
        if "/tree/" in path:
            return tree
        return {
            "id": "me/small",
            "sha": self.commit,
            "cardData": self.card,
            "siblings": siblings,
        }

    def _mode(self, name: str) -> dict[str, Any]:
        mode = "lfs" if name.endswith(".safetensors") else "regular"
        return {"path": name, "uploadMode": mode, "shouldIgnore": False}

    def _upload(self, large: dict[str, Any]) -> dict[str, Any]:
        return large | {"actions": {"upload": {"href": f"{self.address}/upload/{large['oid']}"}}}

    def _apply(self, key: str, value: dict[str, Any]) -> None:
        assert self.files is not None
        if key == "header":
            self.messages.append(value["summary"])
        elif key == "deletedFile":
            del self.files[value["path"]]
        elif key == "lfsFile":
            self.files[value["path"]] = self.objects[value["oid"]]
        else:
            self.files[value["path"]] = base64.b64decode(value["content"])


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(Handler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_POST(self) -> None:
        self.answer(json.dumps(self.hub.post(urlsplit(self.path).path, self.body())).encode())

    def do_PUT(self) -> None:
        content = self.body()
        assert self.path.endswith(_sha(content))
        self.hub.objects[_sha(content)] = content
        self.answer()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        for part, refusal in self.hub.refusals.items():
            if part in path:
                self.answer(**refusal)
                return
        if "/resolve/" not in path:
            self.answer(json.dumps(self.hub.get(path)).encode())
            return
        content = (self.hub.files or {}).get(path.split("/", 5)[-1])
        if content is None:
            self.answer(status=404, X_Error_Code="EntryNotFound")
        else:
            about = {
                "ETag": f'"{_sha(content)}"',
                "X-Repo-Commit": self.hub.commit,
                **self.hub.about,
            }
            self.answer(content, **about)

    do_HEAD = do_GET


@contextmanager
def running() -> Iterator[Hub]:
    """Serve a hub, whose address is for HF_ENDPOINT, on a free port."""
    hub = Hub()
    with serving(type("OfHub", (_Handler,), {"hub": hub})) as hub.address:
        yield hub
