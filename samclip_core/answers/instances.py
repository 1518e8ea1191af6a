"""Every instance of a text: the dense CLIP map against background words, then the SAM head."""

from samclip_core.answers.dense import cosine_maps
from samclip_core.answers.duplicates import drop_duplicates
from samclip_core.answers.map_prompts import (
    MAX_COMPONENTS,
    component_steps,
    find_components,
    to_logits_frame,
)
from samclip_core.answers.steps import Steps, Terms, run
from samclip_core.answers.zero_shot import softmax
from samclip_core.geometry import FloatArray
from samclip_core.types import EverythingMask, ImageFeatures, MaskHead

PRESENT = 0.5
"""The text is present where its probability against the background exceeds this."""


def find_instances(
    sam_head: MaskHead,
    features: ImageFeatures,
    text_D: FloatArray,
    label: str,
    logit_scale: float,
    background_KD: FloatArray,
) -> list[EverythingMask]:
    """Return the masks of objects that match ``text_D``, most probable first.

    Each connected piece of the cells where the text beats every background word prompts the SAM
    head once, all in one call. ``label_score`` is the piece's mean probability against those words
    (``samclip_core.answers.dense.background_words``). Objects that touch count as one.
    """
    terms = Terms.of(sam_head, MAX_COMPONENTS)
    steps = instance_steps(terms, features, text_D, label, logit_scale, background_KD)
    return run(steps, sam_head)


def instance_steps(
    terms: Terms,
    features: ImageFeatures,
    text_D: FloatArray,
    label: str,
    logit_scale: float,
    background_KD: FloatArray,
) -> Steps[list[EverythingMask]]:
    """Run ``find_instances`` in steps."""
    cosine_Chw = cosine_maps(features, text_D[None], background_KD)
    probability_Chw = softmax(logit_scale * cosine_Chw)[:1]
    probability_Css = to_logits_frame(features, probability_Chw)
    components = find_components(features, probability_Css, probability_Css > PRESENT)
    refined = yield from component_steps(terms, features, components)
    masks = [
        EverythingMask(
            features.geometry,
            found.logits_ss,
            found.predicted_iou,
            found.stability,
            label,
            found.component.score,
        )
        for found in refined
    ]
    return drop_duplicates(masks, [mask.label_score for mask in masks])
