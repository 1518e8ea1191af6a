"""JSON of any length, written in pieces: ``json.dumps`` keeps the GIL until it has written all."""

import io
import json
from typing import Any

from starlette.responses import JSONResponse

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class LongJSON(JSONResponse):
    """A JSONResponse to be made in a thread, during which other threads get their turns."""

    def render(self, content: Any) -> bytes:
        body = io.BytesIO()  # as text, one emoji would make all other characters four bytes
        body.writelines(map(str.encode, _ENCODER.iterencode(content)))
        return body.getvalue()
