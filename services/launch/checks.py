"""What a service needs from this machine: each check says what it found, and what to do."""

import asyncio
import contextlib
import os
import platform
import re
import resource
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from redis.exceptions import RedisClusterException, RedisError

from samclip_core.engine.base import runs_graphs
from samclip_core.engine.processor import cores, instructions
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from services.cache.connection import Client, close, connect
from services.front_door import haproxy
from services.launch import isolation
from services.retrieval import engine, folder
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
    yield collections(settings)
    yield redis(settings)
    yield checkpoint_files(settings)


def versions(distribution: str = "samclip", extra: str = "serve") -> Iterator[Finding]:
    """Yield samclip's version, and a finding for every requirement that is not met."""
    try:
        needed = [Requirement(text) for text in requires(distribution) or ()]
        yield Finding("version", "ok", f"{distribution} {version(distribution)}")
    except PackageNotFoundError:
        yield Finding("version", "note", "runs from a checkout", "pip install -e '.[serve]'")
        return
    extras = _extras(needed, distribution, extra)
    for one in needed:
        applies = one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras)
        if not applies or one.name == distribution:
            continue
        try:
            installed = version(one.name)
        except PackageNotFoundError:
            installed = "none"
        if installed == "none" or not one.specifier.contains(installed, prereleases=True):
            yield Finding(
                "version",
                "wrong",
                f"{one.name}: needs {one.specifier}, found {installed}",
                f"in a clone, run pip install -e '.[{extra}]'",
            )


def _extras(needed: list[Requirement], distribution: str, extra: str) -> set[str]:
    """Return the extra and those that it includes, such as "core" of samclip[core]."""
    found = {extra}
    for one in needed:
        if one.name == distribution and one.marker and one.marker.evaluate({"extra": extra}):
            found |= one.extras
    return found


def cpu() -> Finding:
    number, flags = cores(), instructions()
    names = [name for name in INSTRUCTIONS if name in flags]
    found = f"{number} cores, {', '.join(names) or platform.machine()}"
    if number == 1:
        return Finding("CPU", "note", found, "two cores or more answer several callers at once")
    if flags and not {"avx2", "asimd"} & flags:
        return Finding("CPU", "note", found, "a processor with AVX2 is several times faster")
    return Finding("CPU", "ok", found)


def gpu(settings: Settings) -> Finding:
    """Compare the setting ``device`` with the GPUs and NPUs here."""
    device = settings.device
    if device == "cpu":
        for name, use in _present():
            advice = f"to use it: in a clone, pip install -e '.[gpu]'; then --device {use}"
            return Finding("GPU", "note", f"{name} that the setting device does not use", advice)
        return Finding("GPU", "ok", "none, and device is cpu")
    if runs_graphs(device):
        from samclip_core.engine import with_openvino

        try:
            found = with_openvino.devices(device.upper())
        except CheckpointError as error:
            return Finding("GPU", "wrong", str(error), "--device cpu")
        return Finding("GPU", "ok", f"OpenVINO runs on {', '.join(['CPU', *found])}")
    return _of_torch(device)


def _present() -> Iterator[tuple[str, str]]:
    """Yield each kind of GPU that this machine has, with the device that uses it."""
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        yield "an NVIDIA GPU", "cuda"
    if Path("/dev/kfd").exists():
        yield "an AMD GPU", "cuda, with PyTorch for ROCm"
    if sys.platform == "darwin" and platform.machine() == "arm64":
        yield "an Apple GPU", "mps"


def _of_torch(device: str) -> Finding:
    try:
        import torch
    except ImportError:
        found = f"device is {device}, and PyTorch is not installed"
        advice = "in a clone, run pip install -e '.[gpu]'; or --device cpu"
        return Finding("GPU", "wrong", found, advice)
    from samclip_core.engine.torch_engine import check_device

    try:
        check_device(device)
    except CheckpointError as error:
        found, _, advice = str(error).rpartition(": ")
        return Finding("GPU", "wrong", found, f"{advice}: --device cpu")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return Finding("GPU", "ok", name)


def memory() -> Finding:
    """Check the memory that is free, in the container's limit if there is one."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # macOS tells only its total
    with contextlib.suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvail")).split()[1])
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
        folder = getattr(settings, name)
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
    """Check that there is a HAProxy."""
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


def collections(settings: Settings) -> Finding:
    """Check that no other service uses the folder of the collections."""
    if engine.may_use_redis(settings):
        return Finding("collections", "ok", "in Redis, or in files where Redis is too old")
    found = f"{settings.index_dir} is free"
    try:
        if holder := folder.holder(settings.index_dir):
            found = f"{settings.index_dir} is in use by {holder}"
            if _is_ours(settings):
                return Finding("collections", "note", found, "samclip status")
            advice = "stop that service, or choose another folder with --index-dir"
            return Finding("collections", "wrong", found, advice)
    except OSError as error:
        advice = "choose a folder of this user alone with --index-dir"
        return Finding("collections", "wrong", str(error), advice)
    return Finding("collections", "ok", found)


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


def checkpoint_files(settings: Settings) -> Finding:
    """Check every file of the checkpoint against its digest."""
    try:
        directory = checkpoint.resolve(settings.checkpoint)
        checkpoint.verify(directory)
    except CheckpointError as error:
        return Finding("checkpoint", "wrong", str(error), "fetch it again, or name another one")
    found = f"{settings.checkpoint}, digest {checkpoint.shown(checkpoint.identity(directory))}"
    if runs_graphs(settings.device) and not checkpoint.graphs(directory):
        advice = f"samclip export {settings.checkpoint} makes it faster on a CPU"
        return Finding("checkpoint", "note", f"{found}, without graphs", advice)
    return Finding("checkpoint", "ok", found)
