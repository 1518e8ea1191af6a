import copy
import json
import pickle
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from segment_anything import sam_model_registry

from samclip_core.commands.convert import convert, main
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from samclip_core.io.official import read_state
from samclip_core.nn.network import SAM_PARTS, build, load_net
from samclip_core.nn.official_sam import sam_config
from samclip_core.nn.text_encoder import load_text_encoder
from tests.clip_models import ARCHITECTURE, TEXT_DIM, add_small_clip
from tests.memory import growth_mb
from tests.official import clip, small_sam, write
from tests.tips_models import vision, write_tips

FRAME, WIDTH = 128, 32


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory) -> str:
    return add_small_clip(tmp_path_factory.mktemp("architecture"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory, clip_model):
    directory = tmp_path_factory.mktemp("official")
    sam = write(small_sam(FRAME, WIDTH), directory, "sam.pth")
    return sam, write(clip(clip_model), directory, "clip.bin")


@pytest.fixture(scope="module")
def converted(tmp_path_factory, clip_model, sources):
    out = tmp_path_factory.mktemp("out") / "small"
    assert main(["--sam", f"{sources[0]}", "--clip", f"{clip_model}:{sources[1]}",
                 "--out", f"{out}"]) == 0  # fmt: skip
    return out


def test_config_is_found_in_the_shapes(converted, clip_model):
    config = checkpoint.read_config(converted)
    assert (config.kind, config.name, config.backbone) == ("pair", "small", "tiny")
    assert (config.image_size, config.embed_dim, config.text_dim) == (FRAME, WIDTH, TEXT_DIM)
    assert config.clip_head is None
    assert config.text.model == clip_model
    assert config.logit_scale == pytest.approx(clip(clip_model).logit_scale.exp().item())


def test_every_tensor_arrives_bit_for_bit(converted, sources):
    sam_state, clip_state = (read_state(path) for path in sources)
    net, text_encoder = load_net(converted), load_text_encoder(converted)
    stored = net.state_dict()
    for key, value in sam_state.items():
        assert torch.equal(stored.pop(key), value), key
    stored = stored | text_encoder.state_dict()
    for key, value in clip_state.items():
        where = f"clip_head.{key}" if key.startswith("visual.") else f"model.{key}"
        assert torch.equal(stored.pop(where), value), key
    assert not stored


def test_safetensors_and_wrapped_state_dicts_are_read_alike(tmp_path, sources):
    plain = read_state(sources[1])
    save_file(plain, tmp_path / "clip.safetensors")
    wrapped = {"state_dict": {f"module.{key}": value for key, value in plain.items()}}
    torch.save(wrapped, tmp_path / "epoch.pt")
    for name in ("clip.safetensors", "epoch.pt"):
        read = read_state(tmp_path / name)
        assert read.keys() == plain.keys()
        assert all(torch.equal(read[key], value) for key, value in plain.items())


@pytest.mark.parametrize(
    ("part", "edit", "message"),
    [
        (0, lambda s: s.pop("mask_decoder.iou_token.weight"), "missing.*mask_decoder.iou_token"),
        (0, lambda s: s.update(spare=torch.zeros(1)), "unexpected.*spare"),
        (0, lambda s: s.pop("image_encoder.pos_embed"), "pos_embed' is missing"),
        (0, lambda s: s.pop("image_encoder.blocks.0.norm1.weight"), "missing.*blocks.0.norm1"),
        (
            0,
            lambda s: s.update({"image_encoder.pos_embed": torch.zeros(1, 8, 8, 9)}),
            "4 blocks of width 9.*sam_vit_b_01ec64",
        ),
        (1, lambda s: s.update({"ln_final.weight": torch.zeros(9)}), r"ln_final.weight \[9\]"),
        (1, lambda s: s.pop("visual.conv1.weight"), "missing.*visual.conv1"),
    ],
)
def test_names_the_key_that_does_not_fit(tmp_path, sources, clip_model, part, edit, message):
    paths = list(sources)
    state = read_state(paths[part])
    edit(state)
    paths[part] = tmp_path / "edited.pth"
    torch.save(state, paths[part])
    with pytest.raises(CheckpointError, match=message):
        convert(paths[0], f"{clip_model}:{paths[1]}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refuses_what_is_not_tensors_alone(tmp_path):
    torch.save({"weights": tmp_path}, tmp_path / "code.pth")
    (tmp_path / "page.pth").write_text("<html>")
    (tmp_path / "page.safetensors").write_text("<html>")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(tmp_path))
        archive.writestr("archive/constants.pkl", b"")
        archive.writestr("archive/version", "3")
    for name in (
        "code.pth",
        "page.pth",
        "page.safetensors",
        "archive.pt",
        "tensor.pth",
        "none.pth",
    ):
        with pytest.raises(CheckpointError, match=name):
            read_state(tmp_path / name)
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"older than torch 1.6: load and save it again"):
        read_state(tmp_path / "old.pth")


def test_tensors_that_are_larger_than_their_file_are_refused(tmp_path):
    row = torch.zeros(1, 1000)
    torch.save({"a": row.expand(1000, 1000)}, tmp_path / "expanded.pth")
    torch.save({str(n): row for n in range(1000)}, tmp_path / "shared.pth")
    for name in ("expanded.pth", "shared.pth"):
        with pytest.raises(CheckpointError, match=f"{name} states tensors of 4,000,000 bytes"):
            read_state(tmp_path / name)
    torch.save({"a": row, "b": row}, tmp_path / "tied.pth")
    assert read_state(tmp_path / "tied.pth").keys() == {"a", "b"}


def sharing(path):
    """Write a file of torch, all of whose 200 tensors of 1 MB are the same bytes of it."""
    torch.save({str(n): torch.full((2**18,), float(n)) for n in range(200)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    large = [name for name, content in entries.items() if len(content) == 2**20]
    with zipfile.ZipFile(path, "w") as archive:
        for name in entries.keys() - {*large[1:]}:
            archive.writestr(name, entries[name])
        for name in large[1:]:
            other = copy.copy(archive.getinfo(large[0]))
            other.filename = other.orig_filename = name
            archive.filelist.append(other)


def nested(path):
    """Write an archive of which each entry has all that follow: 200 MB of 1 MB."""
    content, entries = bytes(2**20), []
    for number in range(200):
        entry = zipfile.ZipInfo(f"archive/data/{number}")
        entry.file_size = entry.compress_size = len(content)
        entry.CRC, entry.header_offset = zlib.crc32(content), -len(content)
        content = entry.FileHeader() + content
        entry.header_offset -= len(entry.FileHeader())
        entries.append(entry)
    with zipfile.ZipFile(path, "w") as archive:
        archive.fp.write(content)
        archive.start_dir = archive.fp.tell()
        for entry in entries:
            entry.header_offset += len(content)
            archive.filelist.append(entry)
        archive.writestr("archive/constants.pkl", b"")


@pytest.mark.parametrize("made", [sharing, nested])
def test_entries_that_overlap_take_no_memory(tmp_path, made):
    made(tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").stat().st_size < 2_000_000
    code = """
try:
    read_state(Path(sys.argv[1]))
except CheckpointError as error:
    print(error)
else:
    sys.exit("it was read")
"""
    imports = "from pathlib import Path; from samclip_core.io.official import *"
    assert growth_mb(imports, code, tmp_path / "weights.pt") < 60  # 200 and more if it is read


def test_small_files_that_state_large_networks_take_no_memory(tmp_path):
    blocks = {f"image_encoder.blocks.{n}.x": torch.zeros(1) for n in range(32)}
    neck = {"image_encoder.neck.0.weight": torch.zeros(256, 1)}
    torch.save(
        neck | blocks | {"image_encoder.pos_embed": torch.zeros(1, 1, 1, 1280)}, tmp_path / "sam"
    )
    good, wide = (write_tips(tmp_path / name) for name in ("good", "wide"))
    tower = vision() | {f"blocks.{n}.norm1.weight": np.zeros(1, np.float32) for n in range(200)}
    tower["blocks.0.mlp.fc1.bias"] = np.zeros(10**5, np.float32)
    np.savez(wide / "tiny_vision.npz", **tower)
    code = """
sam, good, wide = map(Path, sys.argv[1:])
for read in (
    lambda: convert(sam, f"local-dir:{good}", Path("never")),
    lambda: TipsTower(load(wide).text.image),
):
    try:
        read()
    except CheckpointError as error:
        assert "does not match" in str(error), error
    else:
        sys.exit("it was built")
"""
    imports = (
        "from pathlib import Path; from samclip_core.commands.convert import *; "
        "from samclip_core.families.tips.network import TipsTower; "
        "from samclip_core.errors import *; from samclip_core.families.tips.files import load"
    )
    assert growth_mb(imports, code, tmp_path / "sam", good, wide) < 150  # 2,500 if it is built


def test_a_tar_is_no_file_of_weights(tmp_path):
    """Before tensors are read, a header of digits would be searched for minutes."""
    with tarfile.open(tmp_path / "tar.pth", "w", pax_headers={"a": "1" * 300_000}) as archive:
        archive.addfile(tarfile.TarInfo("\x80\x02.pth"))
    with pytest.raises(CheckpointError, match=r"tar\.pth"):
        read_state(tmp_path / "tar.pth")


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit", "ignore:.*TorchScript", "ignore:Converting a tensor"
)
def test_an_archive_of_openai_is_read_without_its_programs(tmp_path, sources, clip_model):
    model = clip(clip_model)
    model.register_buffer("input_resolution", torch.tensor(64))
    images, ids = torch.zeros(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.long)
    torch.jit.trace(model, (images, ids), check_trace=False).save(tmp_path / "archive.pt")
    with zipfile.ZipFile(tmp_path / "archive.pt", "a") as archive:
        archive.writestr("archive/code/__torch__.py", "not a program")
    assert convert(sources[0], f"{clip_model}:{tmp_path}/archive.pt", tmp_path / "one")
    assert convert(sources[0], f"{clip_model}:{sources[1]}", tmp_path / "other")
    for file in (checkpoint.WEIGHTS, checkpoint.TEXT_WEIGHTS):
        assert checkpoint.sha256(tmp_path / "one" / file) == checkpoint.sha256(
            tmp_path / "other" / file
        )


def test_command_line_says_what_is_wrong(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--sam", "a.pth", "--clip", "weights.bin", "--out", str(tmp_path / "out")])
    assert "MODEL:FILE" in capsys.readouterr().err
    status = main(["--sam", f"{tmp_path}/a.pth", "--clip", "M:b", "--out", f"{tmp_path}/out"])
    assert status == 1
    assert "no file" in capsys.readouterr().err


def test_a_folder_of_the_hub_keeps_its_description(tmp_path, sources):
    """A model that open_clip does not know is served with its own activation and pixels."""
    described = {
        "model_cfg": ARCHITECTURE | {"quick_gelu": True},
        "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    save_file(read_state(sources[1]), tmp_path / "open_clip_model.safetensors")
    convert(sources[0], f"local-dir:{tmp_path}", tmp_path / "out")
    net, text_encoder = load_net(tmp_path / "out"), load_text_encoder(tmp_path / "out")
    assert checkpoint.read_config(tmp_path / "out").text.open_clip == described
    assert net.clip_head.pixel_mean_311.flatten().tolist() == pytest.approx([102, 127.5, 153])
    assert net.clip_head.pixel_std_311.flatten().tolist() == pytest.approx([76.5, 51, 25.5])
    for tower in (net.clip_head, text_encoder):
        kinds = {type(module) for module in tower.modules()}
        assert QuickGELU in kinds
        assert torch.nn.GELU not in kinds


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_every_published_sam_is_found_by_its_shapes(variant):
    with torch.device("meta"):
        official = sam_model_registry[variant]().state_dict()
        config = sam_config(official)
        ours = build(config, SAM_PARTS).state_dict()
    assert (config.backbone, config.image_size, config.embed_dim) == (variant, 1024, 256)
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in official.items()
    }


def test_a_file_in_the_place_of_the_checkpoint_is_left_alone(clip_model, sources, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    arguments = ["--sam", f"{sources[0]}", "--clip", f"{clip_model}:{sources[1]}"]
    assert main([*arguments, "--out", f"{tmp_path}/file"]) == 1
    assert "Not a directory" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
