"""The settings of the service: one name each, in a TOML file, the environment or as a flag.

A flag beats the environment (``SAMCLIP_<NAME>``), the environment beats the file, and the file
beats the defaults below. A name that is not listed here is an error, wherever it stands.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from samclip_core import guarded
from samclip_core.answers.own import absolute, name_of
from samclip_core.engine.base import CACHE_DIR, DtypeChoice
from samclip_core.errors import HeadError
from services import model_names

PREFIX = "SAMCLIP_"
MIB = 1024 * 1024
NOT_OURS = {"SAMCLIP_DATA", "SAMCLIP_API_KEY", "SAMCLIP_SERVER"}
"""The tests' photographs; a client's key and address."""


def _absolute(path: Path, field: ValidationInfo) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        variable = f"{PREFIX}{field.field_name}".upper()
        raise ValueError(f"{error} Set {variable} to a path without ~") from error


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


def _place(value: object, field: ValidationInfo) -> object:
    return value if "://" in str(value) else _absolute(Path(str(value)), field)


Place = Annotated[Path | str, BeforeValidator(_place)]
"""A folder, or a URL, which stays a text."""


def _split(value: object) -> object:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


HostName = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[\w.-]+)$")]
Hosts = Annotated[tuple[HostName, ...] | None, NoDecode, BeforeValidator(_split)]
"""Names or addresses without ports: a list in TOML, between commas in the environment."""

Origin = Annotated[str, Field(pattern=r"^https?://(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d+)?$")]
Origins = Annotated[tuple[Origin, ...] | None, NoDecode, BeforeValidator(_split)]

Listed = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(lambda value: _split(value) if value else ())
]
Models = Annotated[Listed, AfterValidator(model_names.check)]


def _check_heads(specs: tuple[str, ...]) -> tuple[str, ...]:
    specs = tuple(map(absolute, specs))
    try:
        names = [name_of(spec) for spec in specs]
    except HeadError as error:
        raise ValueError(str(error)) from error
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two heads have the name {name!r}: rename one class or folder")
    return specs


HeadSpecs = Annotated[Listed, AfterValidator(_check_heads)]


class SettingsError(ValueError):
    """A setting that does not exist, or a value that it cannot take."""


class Settings(BaseSettings):
    """What an operator may choose. Sizes are in bytes, times in the unit that the name ends in.

    The text below each field is its row in ``docs/settings.md``.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
    )

    checkpoint: str = "edge"
    """bundled name, [published model](models.md), directory or
    [`hf://owner/name`](integrations/hugging-face.md)"""
    models: Models = ()
    """models by their names in requests, separated by commas, instead of `checkpoint`:
    `edge,mobile=/models/mobile,today=mobile`. The first one is the default. A value that is another
    name makes an alias of it, any other is a checkpoint; see [several models](several-models.md)"""
    models_at_start: Literal["default", "all"] = "default"
    """models to load at the start; others are loaded for their first request"""
    model_idle_s: float = Field(0, ge=0)
    """a model without a request for so long is unloaded until its next one; 0: never"""
    max_models_bytes: int = Field(0, ge=0)
    """memory of the models of each process, on a GPU that of the device: to make room for another
    one, the least recently used are unloaded. While all are in use, or one was loaded just now,
    the request waits until its deadline, and then gets 503; 0: no limit"""
    heads: HeadSpecs = ()
    """[heads of your own](heads.md), separated by commas: `FILE.py:CLASS`, `MODULE:CLASS`, or a
    folder of `samclip probe`; each answers at `/heads/NAME`"""
    device: str = "cpu"
    """`cpu`; a GPU of PyTorch: `cuda`, `cuda:1` … (NVIDIA's, and AMD's with ROCm), `mps`
    (Apple's)"""
    dtype: DtypeChoice = "auto"
    """precision of the image encoder: `float32`, `bfloat16`, `float16` or `int8` (reported as
    `int8+bfloat16` where the layers that stay in float are in bfloat16). On a CPU, `auto` measures
    the precisions that the checkpoint and the processor have, and takes a lower one where it is
    clearly faster; with `cuda` it is `bfloat16`, with `mps` `float32`. Masks are decoded in the
    processor's fastest floating-point precision, and in float32 if this is `float32`"""
    threads: int = Field(0, ge=0)
    """threads of each process that holds a model; 0: the runtime decides"""
    compiled_cache_dir: AbsolutePath = CACHE_DIR
    """where graphs compiled for this processor are kept, with what `auto` measured; the folder must
    belong to this user alone"""
    replica_cpus: float = Field(0, ge=0)
    """CPUs that Ray reserves for each replica; 0: all replicas share them"""

    host: str = "127.0.0.1"
    """address to listen at; `0.0.0.0`: every interface"""
    http_port: int = Field(8000, ge=1, le=65535)
    """HTTP"""
    grpc_port: int = Field(9000, ge=1, le=65535)
    """gRPC"""
    inner_http_port: int = Field(0, ge=0, le=65535)
    """Ray Serve's own HTTP port, behind the front door; 0: any free one"""
    inner_grpc_port: int = Field(0, ge=0, le=65535)
    """Ray Serve's own gRPC port, the same way"""
    serve_host: str = "127.0.0.1"
    """where the front door finds these two ports"""
    front_door_secret: str = Field("", repr=False)
    """the secret between front door and services; empty: a new one at each start"""
    front_doors: Hosts = None
    """names of all front doors of a cluster, this one included, separated by commas: the limits of
    a key then hold for all of them together; empty: this one is alone"""
    keeper_http_port: int = Field(8010, ge=1, le=65535)
    """where front doors pass each other requests of keys with limits, if there are several"""
    keeper_grpc_port: int = Field(9010, ge=1, le=65535)
    """the same, for gRPC"""
    api_keys_file: AbsolutePath | None = None
    """file of API keys, see [access](access.md); empty: callers need no key"""
    allow_open: bool = False
    """listen beyond this machine without asking callers for a key"""
    allowed_hosts: Hosts = None
    """names without ports, separated by commas, that the `Host` header of HTTP may have besides
    `localhost`, `127.x.x.x` and `[::1]`; empty: any name where callers show a key or a certificate
    or `allow_open` is set, otherwise no other name"""
    cors_origins: Origins = None
    """origins of other sites whose pages may use the HTTP API, such as `https://app.example`,
    separated by commas; empty: none"""
    tls_cert_file: AbsolutePath | None = None
    """certificate, chain and private key in one PEM file; both ports then speak only TLS"""
    tls_client_ca_file: AbsolutePath | None = None
    """callers must show a certificate of this CA (mTLS)"""

    backbone_address: str = ""
    """`host:port` of the backbone of another cluster; empty: its own"""
    backbone_api_key: str = Field("", repr=False)
    """API key for the backbone of another cluster"""
    backbone_ca_file: AbsolutePath | None = None
    """CA of that backbone's certificate; with it, the connection uses TLS"""
    redis_url: str | None = Field(None, repr=False)
    """a Redis that keeps embeddings for all processes: `redis://`, `rediss://` (TLS), `unix://`,
    `redis+sentinel://host:port,…/service/db`, `redis+cluster://host:port`"""
    redis_timeout_ms: float = Field(100, gt=0)
    """for one exchange with Redis; a slower one counts as a miss"""
    index_dir: Place = Path("~/.local/share/samclip/index")
    """where collections are kept: a folder, or the URL of a bucket (`s3://…`, `gs://…`, `az://…`),
    whose endpoint and keys come from the usual environment variables; services may share it"""
    cache_bytes: int = Field(512 * MIB, ge=0)
    """embeddings that the backbone keeps in memory"""
    head_cache_bytes: int = Field(64 * MIB, ge=0)
    """the same, in each head"""
    max_batch_size: int = Field(8, ge=1)
    """images in one run of the encoder, on a GPU and with PyTorch; a compiled graph on a CPU takes
    one"""
    batch_wait_ms: float = Field(20.0, ge=0)
    """how long a batch waits for images that are being decoded, even if the device is idle"""
    max_queue: int = Field(64, ge=1)
    """images that wait for the encoder; further ones are refused"""
    max_prompt_batch: int = Field(8, ge=1)
    """prompts, of any images, in one run of the mask decoder"""

    max_request_bytes: int = Field(256 * MIB, ge=1)
    """of one request"""
    max_image_bytes: int = Field(32 * MIB, ge=1)
    """of one image file"""
    max_image_pixels: int = Field(64_000_000, ge=1)
    """of one image, checked before it is decoded"""
    max_images: int = Field(64, ge=1)
    """in one request"""
    max_prompts: int = Field(256, ge=1)
    """in one request"""
    max_labels: int = Field(1024, ge=1)
    """in one request"""
    max_tiles: int = Field(4, ge=0, le=16)
    """along the longer side of a large picture, each encoded on its own; 4 means up to 4 × 4"""
    max_metadata_bytes: int = Field(4096, ge=0)
    """of one item of a collection"""
    max_collection_items: int = Field(10_000_000, ge=1)
    """in one collection"""
    max_collection_objects: int = Field(1_000_000, ge=0)
    """in one collection, at most 100 per image or tile; a search for objects compares them all"""
    max_collections: int = Field(1000, ge=1)
    """of one tenant"""
    max_replica_bytes: int = Field(0, ge=0)
    """memory above which a replica is replaced; 0: no limit"""
    request_timeout_s: float = Field(60.0, gt=0)
    """for one request; a caller may ask for less"""

    browser_decoder: bool = False
    """fetch with npm what lets the page [decode masks itself](browser-decoder.md)"""
    label_studio_url: str = Field("", pattern=r"^(https?://[^\s?#]+)?$")
    """address of a Label Studio whose stored images its
    [backend](integrations/label-studio.md) may fetch; empty: none"""
    label_studio_token: str = Field("", repr=False)
    """the token for it"""
    otlp_endpoint: str = ""
    """OpenTelemetry collector (OTLP over HTTP) such as `http://127.0.0.1:4318`; empty: no traces"""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`"""

    @classmethod
    def load(cls, file: Path | None = None, **flags: Any) -> Self:
        """Read the file (TOML), the environment and the flags, of which None means not given.

        Raises SettingsError for an unknown name or a value out of range.
        """
        known = {PREFIX + name.upper() for name in cls.model_fields}
        unknown = {name for name in os.environ if name.startswith(PREFIX)} - known - NOT_OURS
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
        given = {name: value for name, value in flags.items() if value is not None}
        for one, other in (("checkpoint", "models"), ("models", "checkpoint")):
            if one in given:  # instead of the other one elsewhere
                values[other] = cls.model_fields[other].default
        values |= given
        return cls._of(values, cls.model_fields)

    @classmethod
    def _of(cls, values: Mapping[str, Any], known: Iterable[str]) -> Self:
        try:
            return cls(**values)
        except ValidationError as error:
            raise SettingsError(_explain(error, sorted(known))) from error

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.models and self.checkpoint != type(self).model_fields["checkpoint"].default:
            raise ValueError("models and checkpoint are both set: put the checkpoint into models")
        return self

    @property
    def named(self) -> dict[str, str]:
        """The checkpoint of each model, or the name that an alias stands for, by name."""
        if not self.models:
            return {model_names.name_of(self.checkpoint): self.checkpoint}
        return dict(map(model_names.read, self.models))

    @property
    def aliases(self) -> dict[str, str]:
        """The name that each alias stands for."""
        named = self.named
        return {name: value for name, value in named.items() if value != name and value in named}

    @property
    def default(self) -> str:
        """The name of the model that answers requests which name none."""
        first = next(iter(self.named))
        return self.aliases.get(first, first)

    @property
    def own_heads(self) -> dict[str, str]:
        """The specification of each head of one's own by its name."""
        return {name_of(spec): spec for spec in self.heads}

    def per_model(self) -> dict[str, Self]:
        """Return the settings of each model alone, by its name."""
        if not self.models:
            return {self.default: self}
        own = {name: value for name, value in self.named.items() if name not in self.aliases}
        return {
            name: self.model_copy(update={"models": (f"{name}={value}",), "checkpoint": value})
            for name, value in own.items()
        }

    def tuned(self, config: Mapping[str, Any], names: Sequence[str]) -> Self:
        """Return these settings with the values of ``config``, whose names must be in ``names``.

        Raises SettingsError.
        """
        unknown = sorted(set(config) - set(names))
        if unknown:
            raise SettingsError(
                f"user_config has {', '.join(unknown)}; what can change while this service runs "
                f"is {', '.join(names) or 'nothing'}"
            )
        return self._of({**self.model_dump(), **config}, names)


_MOST_BYTES = 2**16
"""Of a settings file: many brackets take as long to read as the square of them."""


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(guarded.read(file, _MOST_BYTES).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"the settings file {file} cannot be read: {error}") from error


def _explain(error: ValidationError, known: list[str]) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting {name!r}; the settings are {', '.join(known)}")
        else:
            shown = str(value) if isinstance(value := problem["input"], Path) else value
            lines.append(f"setting {name!r} is {shown!r}: {problem['msg']}")
    return "\n".join(lines)
