"""LitServe: one worker process decodes and encodes; its loop forms batches."""

from typing import Any

import litserve
from fastapi import Request

from benchmarks.servers.work import MAX_BATCH, PATH, PORT, WAIT_S, Asked, chosen


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.work = chosen()

    def decode_request(self, request: Request, **_: Any) -> Asked:
        return self.work.read(request["image"].file.read())

    def batch(self, inputs: list[Asked]) -> list[Asked]:
        return inputs

    def predict(self, x: list[Asked], **_: Any) -> list[dict[str, Any]]:
        return self.work.run(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any], **_: Any) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=WAIT_S, api_path=PATH)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
