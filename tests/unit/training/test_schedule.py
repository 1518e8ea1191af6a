from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from samclip_core.config import EDGE, VIT_B, SamClipConfig
from samclip_core.families.mobile_sam import BACKBONE
from samclip_core.nn.network import build
from training.schedule import Schedule, optimizer, rate_at

POSITIONS = {"pos_embed", "rel_pos_h", "rel_pos_w", "attention_biases"}
TABLES = {
    EDGE.backbone: set(),
    VIT_B.backbone: POSITIONS - {"attention_biases"},
    BACKBONE: {"rel_pos_h", "rel_pos_w", "attention_biases"},  # Head_CLIP's blocks are SAM's
}
SCHEDULE = Schedule(steps=7, rate=0.1, warmup=2)


def test_the_pretrained_part_learns_at_a_share_of_the_rate():
    schedule = Schedule(steps=1, rate=1e-3, encoder_rate=0.1)
    slow, fast = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = optimizer(schedule, slow.named_parameters(), fast.named_parameters()).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1e-4, 1e-4, 1e-3, 1e-3])
    parameters = [[slow.weight], [slow.bias], [fast.weight], [fast.bias]]
    assert [group["params"] for group in groups] == parameters


def test_what_may_not_learn_is_not_given_to_the_optimizer():
    slow, fast = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
    fast.bias.requires_grad_(False)
    groups = optimizer(SCHEDULE, slow.named_parameters(), fast.named_parameters()).param_groups
    assert [group["params"] for group in groups] == [[fast.weight]]


MOBILE = replace(VIT_B, backbone=BACKBONE)


@pytest.mark.parametrize("config", [EDGE, VIT_B, MOBILE], ids=["edge", "vit-b", "mobile"])
def test_norms_biases_and_position_tables_do_not_decay(config: SamClipConfig):
    with torch.device("meta"):
        net = build(config)
    names = {parameter: name for name, parameter in net.named_parameters()}
    fixed = set[str]()
    for module_name, module in net.named_modules():
        norm = "Norm" in type(module).__name__
        own = module.named_parameters(module_name, recurse=False)
        fixed |= {name for name, _ in own if norm or name.endswith("bias")}
    lasts = [name.rpartition(".")[2] for name in names.values()]
    fixed |= {n for n, last in zip(names.values(), lasts, strict=True) if last in POSITIONS}
    found = {last for last in lasts if last in POSITIONS}
    assert found == TABLES[config.backbone]
    groups = optimizer(SCHEDULE, net.named_parameters(), ()).param_groups
    kept = {names[p] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert kept == fixed
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_names_of_other_networks_say_what_is_a_position_or_a_bias():
    """Matrices all: by timm's, open_clip's and transformers' names."""
    tables = (
        *("pos_embed", "stages.1.blocks.0.attn.attention_biases", "positional_embedding"),
        *("attn.relative_position_bias_table", "embeddings.position_embedding.weight"),
    )
    others = ("post.weight", "head.ln_post.weight", "decompose.weight", "pose.weight", "tokens")
    names = {nn.Parameter(torch.ones(2, 2)): name for name in (*tables, *others)}
    groups = optimizer(SCHEDULE, (), [(name, p) for p, name in names.items()]).param_groups
    decays = {names[p] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decays == set(others)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_fused_update_is_that_of_plain_adamw_for_any_layout_of_gradients(memory_format):
    """A sum over workers gives contiguous gradients, also of weights with channels last."""
    schedule = Schedule(steps=3, rate=1e-2, weight_decay=0.1)
    plain, fused = (nn.Conv2d(6, 4, size) for size in (3, 3))
    fused.load_state_dict(plain.state_dict())
    fused.to(memory_format=torch.channels_last)
    learning = optimizer(schedule, (), fused.named_parameters())
    groups = [{"params": [plain.weight], "weight_decay": 0.1}, {"params": [plain.bias]}]
    reference = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0, foreach=False, fused=False)
    for seed in range(3):
        for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
            random = torch.Generator().manual_seed(seed)
            one.grad = torch.randn(one.shape, generator=random)
            laid_out = memory_format if one.ndim == 4 else torch.contiguous_format
            other.grad = one.grad.clone().contiguous(memory_format=laid_out)
        learning.step()
        reference.step()
    assert fused.weight.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-6)


def test_the_rate_climbs_in_a_line_and_falls_in_half_a_cosine():
    schedule = Schedule(steps=110, rate=1.0, warmup=10)
    rates = [rate_at(step, schedule) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    # The curve is symmetric about its middle.
    assert [1 - rate for rate in rates[:9:-1]] == pytest.approx(rates[10:])


def test_a_schedule_may_be_all_warm_up_or_have_none():
    assert rate_at(0, Schedule(steps=5, rate=1.0, warmup=0)) == 1
    assert rate_at(4, Schedule(steps=5, rate=1.0, warmup=5)) == 1
    assert rate_at(9, Schedule(steps=5, rate=1.0, warmup=0)) == pytest.approx(0)
