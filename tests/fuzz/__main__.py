"""Fuzz every target, starting from the corpus of earlier runs (``make fuzz``).

Targets that take bytes run under atheris. A service receives messages of every rpc, and requests
derived from its OpenAPI document.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc

from tests.e2e.conftest import start
from tests.fuzz.targets import TARGETS, seeds
from tests.fuzz.wire import Tally, fuzz_grpc, fuzz_http
from tests.tiny import make_tiny_checkpoint

BATCH = 500  # hypothesis examples between checks of the time
FLAGS = ("-timeout=20", "-rss_limit_mb=3000", "-max_len=4096", "-print_final_stats=1")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.replace("``", "")
    )
    parser.add_argument("--seconds", type=int, default=600, help="approximate total (600)")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="(out/fuzz)")
    args = parser.parse_args(argv)
    each_s = max(1, args.seconds // (len(TARGETS) + 2))
    total = 0
    for name in TARGETS:
        ran = _guided(name, each_s, args.out)
        print(f"{name:20}{ran:10,} inputs", flush=True)
        total += ran
    for name, tally in _served(each_s).items():
        outcomes = ", ".join(f"{n:,} {what}" for what, n in tally.outcomes.most_common())
        print(f"{name:20}{tally.sent.total():10,} requests: {outcomes}", flush=True)
        total += tally.sent.total()
    print(f"{'total':20}{total:10,}, no failures")
    return 0


def _guided(name: str, seconds: int, out: Path) -> int:
    """Run atheris, and return the number of inputs.

    If the target fails, exit with libFuzzer's report; the input is in ``out``.
    """
    corpus = out / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(data)
    command = [sys.executable, "-m", "tests.fuzz.guided", name, str(corpus), *FLAGS]
    command += [f"-max_total_time={seconds}", f"-artifact_prefix={out}/{name}-"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", ran.stderr)
    if ran.returncode or executed is None:
        sys.exit(f"{name} failed:\n{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}")
    return int(executed[1])


def _served(seconds: int) -> dict[str, Tally]:
    over_grpc, over_http = Tally(), Tally()
    with tempfile.TemporaryDirectory(prefix="samclip-fuzz-") as folder:
        directory = make_tiny_checkpoint(Path(folder) / "tiny")
        service = start(Path(folder), str(directory))
        try:
            with grpc.insecure_channel(service.address) as channel:
                _for(seconds, lambda n: fuzz_grpc(channel, BATCH, n, over_grpc))
            _for(seconds, lambda n: fuzz_http(service, BATCH, n, over_http))
        finally:
            service.stop()
        log = service.log.read_text()
        assert "Traceback" not in log, log[-4000:]
    return {"gRPC": over_grpc, "HTTP": over_http}


def _for(seconds: int, batch: Callable[[int], None]) -> None:
    end = time.monotonic() + seconds
    number = time.time_ns() % 2**32
    while time.monotonic() < end:
        batch(number)
        number += 1


if __name__ == "__main__":
    sys.exit(main())
