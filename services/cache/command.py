"""``samclip cache``: inspect, empty and fill the embedding cache in Redis."""

import argparse
import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError
from samclip.cli.formats import table
from samclip.cli.usage import Parser
from samclip.errors import plain

from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from services.cache import warm
from services.cache.connection import close, connect
from services.cache.entry import PREFIX
from services.settings import Settings, SettingsError

TIMEOUT_S = 10.0
KEYS_AT_ONCE = 1000


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["warm"]:
        return warm.main(words[1:])
    args = parser().parse_args(words)
    try:
        settings = Settings.load(
            args.config, redis_url=args.redis_url, checkpoint=getattr(args, "checkpoint", None)
        )
        found = asyncio.run(_run(settings, args))
    except (SettingsError, CheckpointError, RedisError, OSError) as error:
        print(plain(f"samclip cache: {error}"), file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(found, indent=2))
    elif "removed" in found:
        print(f"{found['removed']} entries removed")
    else:
        print(f"{table(found['entries'])}\n\n{table(found['memory'])}")
    return 0


def parser() -> Parser:
    made = Parser(
        prog="samclip cache",
        description="Count, remove or precompute the embeddings in the Redis of a service.\n"
        "Removal is always safe: a missing embedding is computed again when it is needed.",
        examples=[
            "samclip cache stats --redis-url redis://127.0.0.1:6379/0",
            "samclip cache purge --old --checkpoint edge",
        ],
    )
    common = Parser(add_help=False)
    common.add_argument("--redis-url", help="Redis of the cache (the setting redis_url)")
    common.add_argument("--config", type=Path, metavar="FILE", help="settings file (TOML)")
    common.add_argument("--json", action="store_true", help="print JSON")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    stats = commands.add_parser(
        "stats",
        parents=[common],
        help="count entries and bytes per checkpoint and output",
        examples=[
            "samclip cache stats",
            "samclip cache stats --redis-url redis://127.0.0.1:6379/0 --json",
        ],
    )
    stats.set_defaults(run=_stats)
    purge = commands.add_parser(
        "purge",
        parents=[common],
        help="remove all entries, or those of some checkpoints",
        examples=["samclip cache purge --old", "samclip cache purge --digest 6e3fc764"],
    )
    which = purge.add_mutually_exclusive_group()
    which.add_argument(
        "--digest",
        type=_digest,
        metavar="D",
        help="only entries of checkpoints whose digest starts with D",
    )
    which.add_argument(
        "--old", action="store_true", help="only entries of checkpoints other than --checkpoint"
    )
    purge.add_argument("--checkpoint", help="checkpoint that --old keeps (the setting checkpoint)")
    purge.set_defaults(run=_purge)
    own = warm.parser()  # here for completion and the stored help
    shown: dict[str, Any] = {"description": own.description, "epilog": own.epilog}
    commands.add_parser(
        "warm", help="embed images in advance", parents=[own], add_help=False, **shown
    )
    return made


def _digest(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{4,64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a digest: expected 4 to 64 hex digits")
    return text


async def _run(settings: Settings, args: argparse.Namespace) -> dict[str, Any]:
    if not settings.redis_url:
        raise SettingsError(
            "no Redis is configured: set --redis-url redis://host:port/0 or SAMCLIP_REDIS_URL"
        )
    client = connect(settings.redis_url, TIMEOUT_S)
    try:
        return await args.run(client, settings, args)
    finally:
        await close(client)


async def _stats(client: Any, settings: Settings, args: argparse.Namespace) -> dict[str, Any]:
    entries: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    async for keys in _keys(client, ""):
        pipeline = client.pipeline(transaction=False)
        for key in keys:
            pipeline.strlen(key)
        for key, length in zip(keys, await pipeline.execute(), strict=True):
            contract, _, rest = key.removeprefix(PREFIX).partition(":{")
            group = contract, rest.partition("}:")[2]
            entries[group] += 1
            size[group] += length
    rows = [
        {
            "checkpoint": contract[:12],
            "contract": contract.partition(":")[2],
            "output": output,
            "entries": count,
            "bytes": size[contract, output],
        }
        for (contract, output), count in sorted(entries.items())
    ]
    info = await client.info("memory")
    # A Cluster has several servers.
    servers = info if all(isinstance(part, dict) for part in info.values()) else {"": info}
    memory = [
        {
            "server": server,
            "used": part["used_memory"],
            "maximum": part["maxmemory"],
            "policy": part["maxmemory_policy"],
        }
        for server, part in servers.items()
    ]
    return {"entries": rows, "memory": memory}


async def _purge(client: Any, settings: Settings, args: argparse.Namespace) -> dict[str, Any]:
    kept: tuple[str, ...] = ()
    if args.old:
        served = [checkpoint.resolve(own.checkpoint) for own in settings.per_model().values()]
        kept = tuple(f"{PREFIX}{checkpoint.digest(directory)}:" for directory in served)
    removed = 0
    async for keys in _keys(client, args.digest or ""):
        if doomed := [key for key in keys if not key.startswith(kept)]:
            removed += await client.unlink(*doomed)
    return {"removed": removed}


async def _keys(client: Any, digest: str) -> AsyncIterator[list[str]]:
    """Yield the keys of checkpoints whose digest starts with ``digest``, in batches."""
    keys: list[str] = []
    async for key in client.scan_iter(match=f"{PREFIX}{digest}*", count=KEYS_AT_ONCE):
        keys.append(key.decode())
        if len(keys) == KEYS_AT_ONCE:
            yield keys
            keys = []
    if keys:
        yield keys
