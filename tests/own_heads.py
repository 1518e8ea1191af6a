"""Heads of one's own that tests serve."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from samclip_core import Head
from samclip_core.errors import InvalidRequest


class Closest(Head):
    """Which of two words the picture is closer to."""

    class Parameters(BaseModel):
        at_least: float = Field(0.0, ge=0, le=1, description="least share of the answer")
        words: list[str] = ["red", "blue"]

    def texts(self, parameters: Any) -> list[str]:
        return parameters.words

    def answer(self, features: Any, parameters: Any) -> dict[str, Any]:
        cosine_T = features.text_TD @ features.clip_pooled_D
        best = int(cosine_T.argmax())
        return {"word": parameters.words[best], "cosine": cosine_T[best], "sure": True}


class Parts(Head):
    """Every kind of value in an answer, in steps."""

    outputs = ("CLIP_DENSE", "SAM")

    def load(self, model: Any) -> None:
        self.red_D = model.embed_text(["red"])[0]
        self.segment = model.segment

    def answer(self, features: Any, parameters: Any) -> Iterator[None]:
        yield None
        height, width = features.geometry.height, features.geometry.width
        mask_HW = np.zeros((height, width), bool)
        mask_HW[: height // 2] = True
        yield None
        return {
            "parts": [{"mask": mask_HW, "name": "upper"}],
            "map": features.clip_dense_Dhw[:2],
            "picture": Image.new("RGB", (4, 3), "red"),
            "none": None,
        }


class Faulty(Head):
    """Fails as the parameter says."""

    class Parameters(BaseModel):
        how: str = ""

    def answer(self, features: Any, parameters: Any) -> Any:
        match parameters.how:
            case "invalid":
                raise InvalidRequest("no face in the picture: send one with a face")
            case "crash":
                raise RuntimeError("secret of the operator")
            case "list":
                return [1]
            case "nan":
                return {"score": float("nan")}
            case "long":
                return {"values": [0] * 2_000_000}
            case "dollar":
                return {"$mask": 0}
            case "object":
                return {"value": object()}
        return {"how": parameters.how}


class Colour(BaseModel):
    red: int = 0


class Echo(Head):
    """Answers with its parameters."""

    classes = ("round", "square")

    class Parameters(BaseModel):
        sides: int = Field(ge=0, description="how many sides it has")
        shape: Literal["round", "square"] = "round"
        share: float | None = None
        colour: Colour | None = None
        words: list[str] | None = ["red", "blue"]
        sizes: list[int] = []
        note: str = "none"
        sure: bool = True

    def answer(self, features: Any, parameters: Any) -> dict[str, Any]:
        return {"given": parameters.model_dump()}
