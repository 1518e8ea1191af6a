"""BentoML: a service whose API is batchable; each request brings a batch of one file."""

from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from tests.bench.peers.work import MAX_BATCH, PATH, PORT, Encoder

Jpeg = Annotated[Path, ContentType("image/jpeg")]


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 64})
class Embed:
    def __init__(self) -> None:
        self.encoder = Encoder()

    @bentoml.api(route=PATH, batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)
    def embed(self, image: list[Jpeg]) -> list[list[float]]:
        return self.encoder.encode([self.encoder.decode(file.read_bytes()) for file in image])


if __name__ == "__main__":
    bentoml.serve(
        "tests.bench.peers.with_bentoml:Embed", host="127.0.0.1", port=PORT, blocking=True
    )
