"""Model cards: what each says in its YAML, and the page of a repository on the hub."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from samclip_core.config import SamClipConfig
from samclip_core.io import checkpoint

_KNOWN_LICENCES = ("apache-2.0", "mit")
"""Those that the hub knows by these names."""
_USE = """
## Use

This page needs the package samclip: in a clone of it, run `pip install '.[torch,hub]'`.

```python
from samclip_core import SamClip

model = SamClip.load("hf://{repository}")
photo = open("photo.jpg", "rb").read()
model.classify(photo, ["a cat", "a dog"])
{masks}```

As a service: `samclip serve --checkpoint hf://{repository}`.

With transformers; `model.samclip` has the methods above:

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{repository}", trust_remote_code=True)
model.get_image_features(["photo.jpg"]) @ model.get_text_features(["a photo of a cat."]).T
```

With sentence-transformers 5.4 or later:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{repository}", trust_remote_code=True)
model.similarity(model.encode(["photo.jpg"]), model.encode(["a photo of a cat."]))
```
"""


def described(text: str, config: SamClipConfig, lineage: Mapping[str, Any]) -> str:
    """Return a card with YAML at its top, and the licences of published parts at its end."""
    published = lineage.get("published", ())
    # The hub accepts no spaces in the name of a licence.
    heads = [one["licence"].partition(" (")[0].lower() for one in published]
    names = [re.sub(r"[^a-z0-9.]+", "-", head).strip("-") for head in heads]
    licence = " ".join(dict.fromkeys(names)) or ("apache-2.0" if config.kind == "edge" else "other")
    known = licence in (*_KNOWN_LICENCES, "other")
    pages = [one["address"] for one in published if one["address"].startswith("hf://")]
    data = ModelCardData(
        license=licence if known else "other",
        license_name=None if known else licence.replace(" ", "-and-"),
        library_name="samclip",
        pipeline_tag="mask-generation" if config.masks else "zero-shot-image-classification",
        tags=["sam-clip", "zero-shot-image-classification", "image-feature-extraction"],
        base_model=[page.removeprefix("hf://").partition("@")[0] for page in pages] or None,
    )
    parts = "".join(f"- {one['licence']}: {one['address']}\n" for one in published)
    return f"---\n{data.to_yaml()}\n---\n\n{text}" + (parts and f"\n## Licences\n\n{parts}")


def page(directory: Path, repository: str) -> str:
    """Return the page of a checkpoint on the hub: its card, and how to use the repository."""
    text, config = (directory / checkpoint.CARD).read_text(), checkpoint.read_config(directory)
    if not text.startswith("---\n"):
        lineage = json.loads(checkpoint.read_file(directory, checkpoint.LINEAGE))
        text = described(text, config, lineage)
    masks = 'model.find(photo, ["a cat"])\n' if config.masks else ""
    return text + _USE.format(repository=repository, masks=masks)
