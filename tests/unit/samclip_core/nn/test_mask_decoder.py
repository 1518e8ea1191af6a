import pytest
import torch
from segment_anything import modeling

from samclip_core.nn.sam_head import MaskDecoder

WIDTH, GRID, TOKENS = 32, 6, 3
IMAGE_INDEX = torch.tensor([1, 0, 1, 2, 1])


@pytest.fixture(scope="module")
def decoders() -> tuple[modeling.MaskDecoder, MaskDecoder]:
    torch.manual_seed(0)
    official = modeling.MaskDecoder(
        transformer_dim=WIDTH,
        transformer=modeling.TwoWayTransformer(
            depth=2, embedding_dim=WIDTH, num_heads=4, mlp_dim=64
        ),
        iou_head_hidden_dim=WIDTH,
    )
    ours = MaskDecoder(width=WIDTH, heads=4, mlp_dim=64)
    ours.load_state_dict(official.state_dict())
    return official.eval(), ours.eval()


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    prompts = len(IMAGE_INDEX)
    return tuple(
        torch.randn(shape, generator=generator)
        for shape in (
            (3, WIDTH, GRID, GRID),
            (1, WIDTH, GRID, GRID),
            (prompts, TOKENS, WIDTH),
            (prompts, WIDTH, GRID, GRID),
        )
    )


@pytest.mark.parametrize("multimask", [True, False])
def test_decode_equals_the_official_decoder(decoders, inputs, multimask):
    official, ours = decoders
    images, image_pe, sparse, dense = inputs
    with torch.inference_mode():
        kept = slice(1, None) if multimask else slice(0, 1)
        logits, iou = (output[:, kept] for output in ours.decode(*inputs, IMAGE_INDEX))
        for prompt, image in enumerate(IMAGE_INDEX.tolist()):
            one = slice(prompt, prompt + 1)
            expected_logits, expected_iou = official(
                images[image : image + 1], image_pe, sparse[one], dense[one], multimask
            )
            torch.testing.assert_close(logits[one], expected_logits, atol=1e-5, rtol=0)
            torch.testing.assert_close(iou[one], expected_iou, atol=1e-5, rtol=0)


def test_one_prompt_alone_reaches_the_convolutions_channels_last(decoders, inputs, monkeypatch):
    """With other strides, such as those of a transposed view, every convolution would copy."""
    strides = []

    def paint(tokens_PMD, keys_PDhw, behind_PDhw):
        strides.append(keys_PDhw.stride())
        return MaskDecoder._paint(decoders[1], tokens_PMD, keys_PDhw, behind_PDhw)

    monkeypatch.setattr(decoders[1], "_paint", paint)
    images, image_pe, sparse, dense = inputs
    with torch.inference_mode():
        decoders[1].decode(images, image_pe, sparse[:1], dense[:1], IMAGE_INDEX[:1])
    assert strides == [(GRID * GRID * WIDTH, 1, GRID * WIDTH, WIDTH)]
