"""ONNX Runtime Web, with which the page decodes masks itself: npm fetches it.

Run as a script, which needs no other package, this file puts it into a wheel when that is built,
and ``samclip serve --browser-decoder`` into a cache of this user. Without it the page asks the
service for each mask.
"""

import base64
import gzip
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "1.31.1"
SHA512 = "5GeH+bWQ+HxM10z7erGlsWqryrwMbSvm/1tkIsKTT48g0fI19VXVVC435t4t7VsPdSQeS7NmuZPXrQ73k82URw=="
"""Of npm's package, in base64 as npm lists it."""
SCRIPT, PROGRAM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
PACKED = f"{PROGRAM}.gz"
"""The program as it is kept and sent: 3.8 MB instead of 14.8."""
BUNDLED = Path(__file__).with_name("playground") / "onnxruntime"
CACHED = Path("~/.cache/samclip/onnxruntime-web").expanduser() / VERSION
NPM_S = 300


def folder(wanted: bool) -> Path | None:
    """Return where the files are: beside the page, or in the cache if that is ``wanted``."""
    places = (BUNDLED, CACHED) if wanted else (BUNDLED,)
    return next((place for place in places if (place / PACKED).is_file()), None)


def fetch(to: Path) -> None:
    """Put the files into a folder. Raises OSError, which says why npm has not brought them."""
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", "--silent", f"onnxruntime-web@{VERSION}"]
        try:
            subprocess.run(
                command, cwd=scratch, check=True, capture_output=True, timeout=NPM_S, text=True
            )
        except subprocess.CalledProcessError as error:
            raise OSError(f"npm could not fetch {command[-1]}: {error.stderr.strip()}") from error
        except subprocess.TimeoutExpired as error:
            raise OSError(f"npm has not fetched {command[-1]} in {NPM_S} s") from error
        except FileNotFoundError as error:
            raise OSError("there is no npm: install Node.js") from error
        (archive,) = Path(scratch).glob("*.tgz")
        content = archive.read_bytes()
        if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
            raise OSError(f"{command[-1]} differs from its known digest: it is not used")
        to.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as members:
            _put(_member(members, SCRIPT), to / SCRIPT)
            _put(gzip.compress(_member(members, PROGRAM), mtime=0), to / PACKED)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"package/dist/{name}")
    assert file is not None
    return file.read()


def _put(content: bytes, to: Path) -> None:
    partial = to.with_name(f".{to.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(to)


def prepare() -> None:
    """Fill the cache unless the files are here. What fails is printed: the page works without."""
    if folder(wanted=True) is None:
        print(f"fetching ONNX Runtime Web {VERSION} with npm …", flush=True)
        try:
            fetch(CACHED)
        except OSError as error:
            print(
                f"samclip serve: masks are decoded by the service alone: {error}", file=sys.stderr
            )


if __name__ == "__main__":
    try:
        fetch(Path(sys.argv[1]))
    except OSError as problem:
        sys.exit(f"masks are decoded by the service alone: {problem}")
