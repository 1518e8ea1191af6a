"""``samclip doctor``: what a service needs from this machine, what was found, and what to do."""

import asyncio
import contextlib
import os
import platform
import re
import resource
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from redis.exceptions import RedisClusterException, RedisError
from samclip.cli import formats, usage
from samclip.cli.usage import Parser
from samclip.errors import plain

from samclip_core.engine.choice import Choice, Choices
from samclip_core.engine.processor import cores, instructions
from samclip_core.engine.settle import known
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from services.cache.connection import Client, close, connect
from services.deployment import replica
from services.front_door import haproxy
from services.launch import flags, isolation
from services.settings import Settings, SettingsError

GB = 1e9
MEMORY_BYTES = 2.2e9
"""Memory of the service with the bundled checkpoint after work, as ``make bench`` measures it."""
DISK_BYTES = 1e9
"""Compiled graphs and logs of ``edge`` take a few hundred megabytes."""
FILES = 1024
INSTRUCTIONS = ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")


@dataclass(frozen=True)
class Finding:
    """What a check found. ``advice`` is empty if nothing has to be done.

    state: "ok"; "note" for what could be better; "wrong" if a service cannot run or start so.
    """

    check: str
    state: Literal["ok", "note", "wrong"]
    found: str
    advice: str = ""


def all_checks(settings: Settings) -> Iterator[Finding]:
    """Yield the findings about this machine for a service with these settings."""
    yield from versions()
    yield cpu()
    yield gpu(settings)
    yield memory()
    yield from disk(settings)
    yield open_files()
    yield front_door()
    for name in ("http_port", "grpc_port"):
        yield port(settings, name)
    yield redis(settings)
    for own in settings.per_model().values():
        yield from checkpoint_files(own)


def versions() -> Iterator[Finding]:
    """Yield samclip's version, and a finding for every requirement that is not met."""
    try:
        needed = [Requirement(text) for text in requires("samclip") or ()]
        yield Finding("version", "ok", f"samclip {version('samclip')}")
    except PackageNotFoundError:
        yield Finding("version", "note", "runs from a checkout", "pip install -e '.[serve]'")
        return
    included = [need for need in needed if need.name == "samclip" and _applies(need, {"serve"})]
    extras = {"serve"}.union(*(need.extras for need in included))
    for need in needed:
        if need.name == "samclip" or not _applies(need, extras):
            continue
        try:
            installed = version(need.name)
        except PackageNotFoundError:
            installed = "none"
        if installed == "none" or not need.specifier.contains(installed, prereleases=True):
            found = f"{need.name}: needs {need.specifier}, found {installed}"
            yield Finding("version", "wrong", found, "in a clone, run pip install -e '.[serve]'")


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def cpu() -> Finding:
    number, here = cores(), instructions()
    names = [name for name in INSTRUCTIONS if name in here]
    found = f"{number} cores, {', '.join(names) or platform.machine()}"
    if number == 1:
        return Finding("CPU", "note", found, "two cores or more answer several callers at once")
    if here and not {"avx2", "asimd"} & here:
        return Finding("CPU", "note", found, "a processor with AVX2 is several times faster")
    return Finding("CPU", "ok", found)


def gpu(settings: Settings) -> Finding:
    """Compare the setting ``device`` with the GPUs here."""
    device = settings.device
    if device == "cpu":
        return _unused_gpu()
    try:
        import torch

        from samclip_core.engine.torch_engine import check_device

        check_device(device)
    except ImportError:
        advice = "in a clone, run pip install -e '.[gpu]'; or --device cpu"
        return Finding("GPU", "wrong", f"device is {device}, and PyTorch is not installed", advice)
    except CheckpointError as error:
        found, _, advice = str(error).rpartition(": ")
        return Finding("GPU", "wrong", found, f"{advice}: --device cpu")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return Finding("GPU", "ok", name)


def _unused_gpu() -> Finding:
    use = ""
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        name, use = "an NVIDIA GPU", "cuda"
    elif Path("/dev/kfd").exists():
        name, use = "an AMD GPU", "cuda, with PyTorch for ROCm"
    elif sys.platform == "darwin" and platform.machine() == "arm64":
        name, use = "an Apple GPU", "mps"
    if not use:
        return Finding("GPU", "ok", "none, and device is cpu")
    advice = f"to use it: in a clone, pip install -e '.[gpu]'; then --device {use}"
    return Finding("GPU", "note", f"{name} that the setting device does not use", advice)


def memory() -> Finding:
    """Check the memory that is free, in the container's limit if there is one."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # macOS tells only its total
    with contextlib.suppress(OSError):
        (kilobytes,) = re.findall(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())
        free = 1024 * int(kilobytes)
    with contextlib.suppress(OSError, ValueError):  # "max" without a limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    found = f"{free / GB:.1f} GB available"
    if free < MEMORY_BYTES:
        advice = f"the bundled checkpoint needs {MEMORY_BYTES / GB:.1f} GB: end other programs"
        return Finding("memory", "wrong", found, advice)
    return Finding("memory", "ok", found)


def disk(settings: Settings) -> Iterator[Finding]:
    """Check the disks of the compiled graphs and of the collections."""
    for name in ("compiled_cache_dir", "index_dir"):
        if not isinstance(folder := getattr(settings, name), Path):
            continue  # a bucket
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        found = f"{free / GB:.1f} GB free for {folder}"
        if free < DISK_BYTES:
            yield Finding("disk", "wrong", found, f"free some, or choose another folder: {name}")
        elif not os.access(existing, os.W_OK):
            advice = f"let this user write there, or choose another folder: {name}"
            yield Finding("disk", "wrong", f"cannot write to {existing}", advice)
        else:
            yield Finding("disk", "ok", found)


def open_files() -> Finding:
    """Check the limit of open files, half of which may be connections."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < FILES:
        return Finding("open files", "wrong", f"at most {limit}", f"ulimit -n {FILES} or more")
    return Finding("open files", "ok", f"at most {limit:,}")


def front_door() -> Finding:
    try:
        return Finding("front door", "ok", haproxy.binary())
    except SettingsError as error:
        found, _, advice = str(error).partition(": ")
        return Finding("front door", "wrong", found, advice)


def port(settings: Settings, name: str) -> Finding:
    """Check that a port is free, or that samclip has it."""
    number = getattr(settings, name)
    try:
        isolation.check_free(settings.host, number, name)
    except SettingsError as error:
        if _is_ours(settings):
            return Finding("port", "note", f"{number}: a samclip runs here", "samclip status")
        found, _, advice = str(error).partition(": ")
        return Finding("port", "wrong", found, advice)
    return Finding("port", "ok", f"{number} is free for {name}")


def _is_ours(settings: Settings) -> bool:
    url = f"http://127.0.0.1:{settings.http_port}/healthz"
    with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=2) as reply:
        return b'"live"' in reply.read(1000)
    return False


def redis(settings: Settings) -> Finding:
    """Check that Redis answers, and what it does when it is full."""
    if not settings.redis_url:
        return Finding("Redis", "ok", "none: embeddings are kept in memory")
    try:
        return asyncio.run(_ask_redis(connect(settings.redis_url, timeout_s=2)))
    except (RedisError, RedisClusterException, OSError, SettingsError) as error:
        advice = "start it, or correct redis_url; without it, the service is slower"
        if re.search("self.signed|local issuer", str(error)):
            advice = "end redis_url with ?ssl_ca_certs=FILE, the CA of its certificate"
        return Finding("Redis", "wrong", str(error), advice)


async def _ask_redis(client: Client) -> Finding:
    try:
        info = await client.info()
    finally:
        await close(client)
    server = info if "redis_version" in info else next(iter(info.values()))  # a Cluster has several
    limit, policy = server.get("maxmemory", 0), server.get("maxmemory_policy", "")
    found = f"version {server['redis_version']}, at most {limit / GB:.1f} GB, {policy}"
    if not limit:
        found = f"version {server['redis_version']}, without a limit of its memory"
        return Finding("Redis", "note", found, "set maxmemory, and maxmemory-policy volatile-lru")
    if policy != "volatile-lru":
        return Finding("Redis", "note", found, "set maxmemory-policy volatile-lru")
    return Finding("Redis", "ok", found)


def checkpoint_files(settings: Settings) -> Iterator[Finding]:
    """Check every file of the checkpoint against its digest; yield the runtimes of its graphs."""
    try:
        directory = checkpoint.resolve(settings.checkpoint)
        checkpoint.verify(directory)
        identity = checkpoint.identity(directory)
        found = f"{settings.checkpoint}, digest {checkpoint.shown(identity)}"
        if settings.device == "cpu" and not checkpoint.graphs(directory):
            advice = f"samclip export {settings.checkpoint} makes it faster on a CPU"
            yield Finding("checkpoint", "note", f"{found}, without graphs", advice)
            return
        yield Finding("checkpoint", "ok", found)
        if settings.device == "cpu":
            folder, threads = settings.compiled_cache_dir, settings.threads
            choices = Choices(identity, settings.dtype, folder, threads)
            for part, choice in known(directory, choices).items():
                yield _runtime(part.replace("_", " "), choice)
    except CheckpointError as error:
        yield Finding("checkpoint", "wrong", str(error), "fetch it again, or name another one")


def _runtime(part: str, choice: Choice | None) -> Finding:
    if choice is None:
        return Finding("runtime", "ok", f"{part}: measured at the next start")
    times = ", ".join(f"{name} {ms:g} ms" for name, ms in choice.measured_ms.items())
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(choice.at))
    how = f"{times}; {at}, {'quiet' if choice.quiet else 'busy'}" if times else "no other is here"
    found = f"{part}: {choice.chosen} ({how})"
    if choice.quiet:
        return Finding("runtime", "ok", found)
    advice = "samclip doctor --measure, when nothing else runs"
    return Finding("runtime", "note", f"{found}: a start on an idle machine measures again", advice)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; return 1 if something is wrong."""
    args = parser().parse_args(argv)
    try:
        settings = flags.read(args)
        if args.measure:
            for own in settings.per_model().values():
                replica.choose_runtimes(own, again=True)
        findings = [*all_checks(settings)]
    except (SettingsError, CheckpointError) as error:
        print(f"samclip doctor: {error}", file=sys.stderr)
        return 1
    if args.format == "table":
        for finding in findings:
            print(plain(f"{finding.state:7}{finding.check:12}{finding.found}"))
            if finding.advice:
                print(f"{'':19}{finding.advice}")
    else:
        formats.print_rows(args, [asdict(finding) for finding in findings])
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


def parser() -> Parser:
    made = Parser(
        prog="samclip doctor",
        usage="%(prog)s [--format FORMAT] [--config FILE] [--SETTING VALUE …]",
        description="Check what a service with these settings needs on this machine: versions,\n"
        "processor, GPU, memory, disk, ports, Redis, checkpoint and the runtimes chosen for it.\n"
        "Each line says what was found, and what to do about it. The exit status is 1 if\n"
        "something is wrong.",
        examples=[
            "samclip doctor",
            "samclip doctor --device cuda --redis-url redis://127.0.0.1:6379/0",
        ],
    )
    usage.formats(made)
    made.add_argument(
        "--measure", action="store_true", help="choose again between runtimes and precisions"
    )
    flags.add(made)
    return made
