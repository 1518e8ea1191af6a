"""A checkpoint of samclip for transformers and sentence-transformers.

``samclip push`` copies this file into the repository. It needs the package samclip, which has the
networks of every kind, their checks and their tokenizers.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.image_utils import load_image

try:  # transformers does not name the packages that are imported here, whose names differ
    from samclip_core.io import checkpoint
    from samclip_core.io.image import pixels
    from samclip_core.model import SamClip
except ImportError as error:
    raise ImportError(
        "this model needs the package samclip: in a clone of it, run pip install '.[torch,hub]'"
    ) from error


class SamClipHubConfig(PretrainedConfig):
    """What transformers reads; the checkpoint has a config of its own."""

    model_type = "samclip"


class SamClipModel(PreTrainedModel):
    """Embeds texts and pictures, in float32; ``samclip`` does everything else. No gradients."""

    config_class = SamClipHubConfig
    modalities = ("text", "image")

    def __init__(self, config: SamClipHubConfig, folder: Path) -> None:
        super().__init__(config)
        self.folder = folder
        self.place = torch.nn.Parameter(torch.empty(0), requires_grad=False)  # ``to`` moves it
        self._loaded: tuple[torch.device, SamClip] | None = None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: str, *_: Any, config: Any = None, **options: Any
    ) -> Any:
        """Load the model as ``AutoModel`` does; ``device_map`` may name one device."""
        model = cls.load(name, config=config, **options).to(options.get("device_map") or "cpu")
        model.samclip  # noqa: B018 - which reads the weights
        return model

    @classmethod
    def load(cls, name: str, *, config: Any = None, **options: Any) -> Any:
        """Find the files, as ``SentenceTransformer`` asks; the weights are read on first use."""
        folder = Path(name)
        if not folder.is_dir():
            where: dict[str, Any] = {key: options.get(key) for key in ("revision", "token")}
            where["cache_dir"] = options.get("cache_dir") or options.get("cache_folder")
            where["local_files_only"] = bool(options.get("local_files_only"))
            folder = Path(snapshot_download(name, allow_patterns="samclip/*", **where))
        return cls(config or SamClipHubConfig(), folder / "samclip")

    @property
    def samclip(self) -> SamClip:
        """The checkpoint on this model's device, with every method of the package."""
        device = self.place.device
        if self._loaded is None or self._loaded[0] != device:
            self._loaded = device, SamClip.load(self.folder, str(device), "float32")
        return self._loaded[1]

    def get_text_features(self, texts: str | Sequence[str]) -> Tensor:
        """Embed texts, or one, without templates: T×D, rows of length 1."""
        batch = [texts] if isinstance(texts, str) else list(texts)
        return self._rows(self.samclip.embed_text(batch) if batch else [])

    def get_image_features(self, images: Any) -> Tensor:
        """Embed PIL images, paths or arrays (RGB uint8, H×W×3), or one: B×D, rows of length 1."""
        batch = [images] if isinstance(images, str | Path | Image.Image) else images
        return self._rows([self.samclip.embed_image(_picture(one)) for one in batch])

    def _rows(self, rows: Any) -> Tensor:
        rows_BD = np.asarray(rows, np.float32).reshape(-1, self.get_embedding_dimension())
        return torch.from_numpy(rows_BD).to(self.place.device)

    # What SentenceTransformer calls.

    def get_embedding_dimension(self) -> int:
        return checkpoint.read_config(self.folder).text_dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> Any:
        """Sort a batch of one modality; a string that names an image is one."""
        batch = [next(iter(one.values())) if isinstance(one, dict) else one for one in inputs]
        modality = import_module("sentence_transformers.base.modality").infer_batch_modality(batch)
        if modality == "text":
            return {"texts": [(prompt or "") + text for text in batch]}
        return {"images": batch}

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Add the ``sentence_embedding`` of texts or images to what ``preprocess`` returned."""
        if "texts" in features:
            return features | {"sentence_embedding": self.get_text_features(features["texts"])}
        return features | {"sentence_embedding": self.get_image_features(features["images"])}

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("copy the repository, or its checkpoint with `samclip pull`")

    save = save_pretrained


def _picture(image: Any) -> Any:
    """Return what the package reads as it does everywhere: the bytes of a file, or an array."""
    if isinstance(image, Path) or (isinstance(image, str) and os.path.isfile(image)):
        return Path(image).read_bytes()
    if isinstance(image, str):  # an address, or base64
        image = load_image(image)
    return pixels(image) if isinstance(image, Image.Image) else image
