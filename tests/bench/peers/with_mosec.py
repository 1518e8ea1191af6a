"""mosec: its server in Rust, one worker process that decodes and encodes."""

import sys
from typing import Any

from mosec import Server, Worker

from tests.bench.peers.work import MAX_BATCH, PATH, PORT, Encoder

WAIT_MS = 2


class Embed(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def deserialize(self, data: bytes) -> Any:
        return self.encoder.decode(bytes(data))

    def forward(self, data: list[Any]) -> list[dict[str, list[float]]]:
        return [{"embedding": vector} for vector in self.encoder.encode(data)]


if __name__ == "__main__":
    options = ["--address", "127.0.0.1", "--port", str(PORT), "--timeout", "60000"]
    sys.argv[1:] = [*options, "--log-level", "error"]
    server = Server()
    server.append_worker(
        Embed, num=1, max_batch_size=MAX_BATCH, max_wait_time=WAIT_MS, timeout=60, route=PATH
    )
    server.run()
