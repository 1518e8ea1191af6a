"""The settings of the service: one name each, in a TOML file, the environment or as a flag.

A flag beats the environment (``SAMCLIP_<NAME>``), the environment beats the file, and the file
beats the defaults below. A name that is not listed here is an error, wherever it stands.
"""

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from samclip_core.engine.base import CACHE_DIR, Asked

PREFIX = "SAMCLIP_"
MIB = 1024 * 1024
NOT_OURS = {"SAMCLIP_DATA", "SAMCLIP_API_KEY"}  # the tests' photographs, a client's key


RENAMED = {"torch_threads": "threads"}


def _absolute(path: Path, field: ValidationInfo) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        variable = f"{PREFIX}{field.field_name}".upper()
        raise ValueError(f"{error} Set {variable} to a path without ~") from error


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


def _split(value: object) -> object:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


HostName = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[\w.-]+)$")]
Hosts = Annotated[tuple[HostName, ...] | None, NoDecode, BeforeValidator(_split)]
"""Names or addresses without ports: a list in TOML, between commas in the environment."""


class SettingsError(ValueError):
    """A setting that does not exist, or a value that it cannot take."""


class Settings(BaseSettings):
    """What an operator may choose. Sizes are in bytes, times in the unit that the name ends in."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", validate_default=True
    )

    # The model.
    checkpoint: str = "edge"  # a bundled name or a directory
    device: str = "cpu"
    dtype: Asked = "auto"  # of the encoder; auto: measured at load
    threads: int = Field(0, ge=0)  # of each process with a model; 0: the runtime decides
    compiled_cache_dir: AbsolutePath = CACHE_DIR

    replica_cpus: float = Field(0, ge=0)  # that Ray reserves for each replica; 0: all share them

    # Where it listens. The inner ports are Serve's own, behind the front door.
    host: str = "127.0.0.1"
    http_port: int = Field(8000, ge=1, le=65535)
    grpc_port: int = Field(9000, ge=1, le=65535)
    inner_http_port: int = Field(0, ge=0, le=65535)  # 0: any free one
    inner_grpc_port: int = Field(0, ge=0, le=65535)
    serve_host: str = "127.0.0.1"  # where the front door finds the inner ports
    front_door_secret: str = Field("", repr=False)  # empty: a new random one at each start
    api_keys_file: AbsolutePath | None = (
        None  # services/front_door/keys.py; absent: no key is asked for
    )
    allow_open: bool = False  # let everybody in who reaches an address beyond this machine
    allowed_hosts: Hosts = None  # that a Host header may name beside this machine's own names
    tls_cert_file: AbsolutePath | None = None  # certificates and private key, PEM; absent: no TLS
    tls_client_ca_file: AbsolutePath | None = None  # whose certificates callers must show

    # What it works with.
    backbone_address: str = ""  # host:port of another cluster's front door; empty: our own
    backbone_api_key: str = Field("", repr=False)  # that it asks us for
    backbone_ca_file: AbsolutePath | None = None  # that its TLS certificate comes from
    redis_url: str | None = Field(None, repr=False)  # may hold a password
    redis_timeout_ms: float = Field(100, gt=0)  # one exchange; then on without it
    index_dir: AbsolutePath = Path("~/.local/share/samclip/index")
    cache_bytes: int = Field(512 * MIB, ge=0)  # of the backbone
    head_cache_bytes: int = Field(64 * MIB, ge=0)  # of each head
    cache_dtype: Literal["float16", "int8"] = "float16"  # of what is kept

    # Batching.
    max_batch_size: int = Field(8, ge=1)
    # For images that are being decoded, even while the device has nothing to do.
    batch_wait_ms: float = Field(20.0, ge=0)
    max_queue: int = Field(64, ge=1)  # images that wait for the encoder; more are refused
    # On a CPU at most four of them in one call, as their maps outgrow the caches.
    max_prompt_batch: int = Field(8, ge=1)

    # Limits on one request.
    max_request_bytes: int = Field(256 * MIB, ge=1)
    max_image_bytes: int = Field(32 * MIB, ge=1)
    max_image_pixels: int = Field(64_000_000, ge=1)
    max_images: int = Field(64, ge=1)
    max_prompts: int = Field(256, ge=1)
    max_labels: int = Field(1024, ge=1)
    max_metadata_bytes: int = Field(4096, ge=0)  # of one item of a collection
    max_collection_items: int = Field(10_000_000, ge=1)
    max_collections: int = Field(1000, ge=1)  # of one tenant
    max_replica_bytes: int = Field(0, ge=0)  # of memory, before it is replaced; 0: no limit
    request_timeout_s: float = Field(60.0, gt=0)

    otlp_endpoint: str = ""  # of a collector of OpenTelemetry; empty: no traces
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"

    @classmethod
    def load(cls, file: Path | None = None, **flags: Any) -> Self:
        """Read the file (TOML), the environment and the flags, of which None means not given.

        Raises SettingsError for an unknown name or a value out of range.
        """
        known = {PREFIX + name.upper() for name in cls.model_fields}
        unknown = {name for name in os.environ if name.startswith(PREFIX)} - known - NOT_OURS
        for old, new in RENAMED.items():
            was, is_now = PREFIX + old.upper(), PREFIX + new.upper()
            if was in unknown:
                raise SettingsError(f"environment variable {was} was renamed to {is_now}")
        if unknown:
            raise SettingsError(
                f"unknown environment variable {', '.join(sorted(unknown))}; "
                f"the settings are {', '.join(sorted(known))}"
            )
        values = {
            name: value
            for name, value in (_read(file) if file else {}).items()
            if not os.environ.get(PREFIX + name.upper())
        }
        values |= {name: value for name, value in flags.items() if value is not None}
        try:
            return cls(**values)
        except ValidationError as error:
            raise SettingsError(_explain(error, sorted(cls.model_fields))) from error

    def tuned(self, config: Mapping[str, Any], names: Sequence[str]) -> Self:
        """The same with the values of ``config``, whose names must be among ``names``.

        Raises SettingsError.
        """
        unknown = sorted(set(config) - set(names))
        if unknown:
            raise SettingsError(
                f"user_config has {', '.join(unknown)}; what can change while this service runs "
                f"is {', '.join(names) or 'nothing'}"
            )
        try:
            return type(self)(**{**self.model_dump(), **config})
        except ValidationError as error:
            raise SettingsError(_explain(error, sorted(names))) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"the settings file {file} cannot be read: {error}") from error


def _explain(error: ValidationError, known: list[str]) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if name in RENAMED:
            lines.append(f"setting {name!r} was renamed to {RENAMED[name]!r}")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting {name!r}; the settings are {', '.join(known)}")
        else:
            lines.append(f"setting {name!r} is {_shown(problem['input'])}: {problem['msg']}")
    return "\n".join(lines)


def _shown(value: object) -> str:
    return repr(str(value) if isinstance(value, Path) else value)
