"""The families of published models: the only place that knows one from another.

A new family is a folder beside the others, or a module, and a place in ``FAMILIES``.
"""

from samclip_core.families.clip import CLIP
from samclip_core.families.edge import EDGE
from samclip_core.families.efficientvit_sam import EFFICIENTVIT_SAM
from samclip_core.families.family import Family
from samclip_core.families.mobile_sam import MOBILE_SAM
from samclip_core.families.pe import PE
from samclip_core.families.radio import RADIO
from samclip_core.families.sam import SAM
from samclip_core.families.sam2 import SAM2
from samclip_core.families.tips import TIPS

FAMILIES = (EDGE, MOBILE_SAM, EFFICIENTVIT_SAM, CLIP, PE, TIPS, SAM2, SAM, RADIO)
SIZES = {family.key: family.sizes for family in FAMILIES if family.key}
"""What config.json may state of each family's network, by its key."""
TOWERS = {family.tower: family for family in FAMILIES if family.tower}
"""The families of text towers, by ``TextConfig.tower``."""
KINDS = {family.kind: family for family in FAMILIES if family.kind}
"""The families of CLIP heads, by ``SamClipConfig.kind``; that of a pair is its text tower's."""


def of_backbone(backbone: str) -> Family:
    """Return the family of an image encoder; SAM's, which refuses it, for an unknown one."""
    return next((family for family in FAMILIES if backbone in family.backbones), SAM)
