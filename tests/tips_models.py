"""A TIPSv2 with seeded random weights and few words, in its authors' files."""

from pathlib import Path

import numpy as np

from samclip_core.families.tips.sentencepiece import model_class

WIDTH, HIDDEN, DEPTH, PATCH = 32, 48, 2, 14
CONTROL, UNKNOWN, NORMAL, BYTE = 3, 2, 1, 6
WORDS = ["▁a", "▁c", "at", "▁cat", "▁d", "▁do", "▁dog", *"▁acdgoté"]


def write_tips(folder: Path, gated: bool = False) -> Path:
    """Write the three files, and return the folder."""
    folder.mkdir(parents=True)
    write_tokens(folder, WORDS)
    np.savez(folder / "tiny_vision.npz", **vision(gated))
    np.savez(folder / "tiny_text.npz", **text(len(WORDS) + 2), temperature=np.float32(0.02))
    return folder


def write_tokens(folder: Path, words: list[str], **trainer: int) -> None:
    """Write a tokenizer.model, whose first pieces are <pad> and <unk>, and whose bytes are last."""
    model = model_class()()
    model.trainer.model_type = trainer.get("model_type", 2)
    model.trainer.byte_fallback = bool(trainer.get("byte_fallback"))
    model.pieces.add(piece="<pad>", type=CONTROL)
    model.pieces.add(piece="<unk>", type=UNKNOWN)
    for index, word in enumerate(words):
        model.pieces.add(piece=word, score=-index, type=NORMAL)
    for byte in range(256 if model.trainer.byte_fallback else 0):
        model.pieces.add(piece=f"<0x{byte:02X}>", type=BYTE)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def vision(gated: bool = False) -> dict[str, np.ndarray]:
    """Return the image tower's tensors, with positions for 4×4 patches."""
    first, last = ("w12", "w3") if gated else ("fc1", "fc2")
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "register_tokens": (1, 1, WIDTH),
        "mask_token": (1, WIDTH),
        "pos_embed": (1, 17, WIDTH),
        "patch_embed.proj": (WIDTH, 3, PATCH, PATCH),
        "norm": (WIDTH,),
    }
    for block in range(DEPTH):
        shapes |= {f"blocks.{block}.{name}": (WIDTH,) for name in ("norm1", "norm2")}
        shapes |= {f"blocks.{block}.{name}.gamma": (WIDTH,) for name in ("ls1", "ls2")}
        shapes |= {
            f"blocks.{block}.attn.qkv": (3 * WIDTH, WIDTH),
            f"blocks.{block}.attn.proj": (WIDTH, WIDTH),
            f"blocks.{block}.mlp.{first}": ((2 if gated else 1) * HIDDEN, WIDTH),
            f"blocks.{block}.mlp.{last}": (WIDTH, HIDDEN),
        }
    return _drawn(shapes)


def text(vocabulary: int, width: int = WIDTH) -> dict[str, np.ndarray]:
    """Return the text tower's tensors, without the temperature."""
    tensors = _drawn({"ln_final": (width,)})
    tensors["token_embedding.weight"] = np.ones((vocabulary, width), np.float32)
    for block in range(DEPTH):
        drawn = {"ln_1": (width,), "ln_2": (width,), "attn.out_proj": (width, width)}
        drawn |= {"mlp.c_fc": (HIDDEN, width), "mlp.c_proj": (width, HIDDEN)}
        named = _drawn(drawn) | {"attn.in_proj_weight": np.ones((3 * width, width), np.float32)}
        named["attn.in_proj_bias"] = np.ones(3 * width, np.float32)
        tensors |= {f"transformer.resblocks.{block}.{name}": one for name, one in named.items()}
    return tensors


def _drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw tensors; a layer's name gets a weight of its shape, and a bias."""
    random, tensors = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        whole = name.endswith(("token", "tokens", "pos_embed", "gamma"))
        tensors[name if whole else f"{name}.weight"] = random.normal(0, 0.2, shape)
        if not whole:
            tensors[f"{name}.bias"] = random.normal(0, 0.2, shape[0])
    return {name: one.astype(np.float32) for name, one in tensors.items()}
