"""LitServe: decoding and encoding in its one worker process, batches by its loop."""

from typing import Any

import litserve
from fastapi import Request

from tests.bench.peers.work import MAX_BATCH, PATH, PORT, WAIT_S, Encoder


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.encoder = Encoder()

    def decode_request(self, request: Request, **_: Any) -> Any:
        return self.encoder.decode(request["image"].file.read())

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: list[Any], **_: Any) -> list[list[float]]:
        return self.encoder.encode(x)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def encode_response(self, output: list[float], **_: Any) -> dict[str, list[float]]:
        return {"embedding": output}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=WAIT_S, api_path=PATH)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
