"""mosec: a server in Rust; one worker process decodes and encodes."""

import sys
from typing import Any

from mosec import Server, Worker

from benchmarks.servers.work import MAX_BATCH, PATH, PORT, WAIT_S, Asked, chosen


class Answer(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.work = chosen()

    def deserialize(self, data: bytes) -> Asked:
        return self.work.read(bytes(data))

    def forward(self, data: list[Asked]) -> list[dict[str, Any]]:
        return self.work.run(data)


if __name__ == "__main__":
    options = ["--address", "127.0.0.1", "--port", str(PORT), "--timeout", "60000"]
    sys.argv[1:] = [*options, "--log-level", "error"]
    server = Server()
    wait_ms = round(1000 * WAIT_S)
    server.append_worker(
        Answer, num=1, max_batch_size=MAX_BATCH, max_wait_time=wait_ms, timeout=60, route=PATH
    )
    server.run()
