"""``edge``: the bundled model, a CNN with heads of its own and a sentence encoder for texts."""

from samclip_core.families.family import Family

BACKBONE = "tf_efficientnet_lite0"
LICENCE = """\
As far as this project owns the weights of `edge`, they are released under Apache-2.0; so
are EfficientNet-Lite and all-MiniLM-L6-v2, from which they were made. The photographs that taught
them belong to others: most sets allow non-commercial research only, some state no terms, and such
terms limit training with the photographs and passing them on. Whether they also bind a model that
was trained on the photographs is not settled. A company can evaluate with `edge`; for a product, it
should serve a public model whose licence it has checked, or train on photographs that it has the
rights to."""
# In int8, two of the first four layers triple the pooled embedding's distance to float32
# (1 - cosine).
EDGE = Family(
    name="edge",
    title="edge",
    backbones={BACKBONE: None},
    kind="edge",
    tower="sentence",
    stride=8,
    step=4,  # the CNN halves its frame five times
    any_side=True,
    keep_float=r"\.conv_stem\.|encoder\.trunk\.blocks\.0\.|\.blocks\.1\.0\.conv_pw\.",
    licence=LICENCE,
)
