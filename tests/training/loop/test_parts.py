"""The formulas of training, each against another way to compute it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from refold.blocks import RepVGGBlock
from refold.errors import InputError
from refold.pruning import slimming_penalty
from refold.training.data.loader import Batch
from refold.training.loop.evaluation import judge, verification
from refold.training.loop.feed import Feed
from refold.training.loop.learner import CrossEntropy, Learner
from refold.training.loop.optim import decays, make_optimizer
from refold.training.loop.penalties import kernel_l2
from refold.training.loop.schedule import rate
from refold.training.recipes.recipe import Decay, Optimizer, Schedule


def test_cosine_is_torchs() -> None:
    knob = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    course = torch.optim.lr_scheduler.CosineAnnealingLR(knob, 50, eta_min=0.02)
    for step in range(50):
        assert rate(Schedule(final=0.02), step, 50) == pytest.approx(knob.param_groups[0]["lr"])
        knob.step()
        course.step()


def test_the_courses() -> None:
    resnet = Schedule(
        kind="steps", milestones=(0.5, 0.75), warmup=400 / 64000, warmup_from=0.1, flat=True
    )
    places = (0, 399, 400, 31999, 32000, 47999, 48000, 63999)
    rates = [round(0.1 * rate(resnet, step, 64000), 9) for step in places]
    assert rates == [0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    rising = [rate(Schedule(warmup=0.2), step, 50) for step in range(11)]
    assert all(a < b for a, b in pairwise(rising))
    assert rising[10] == 1.0
    assert rate(Schedule(kind="poly"), 25, 50) == pytest.approx(0.5**0.9)
    assert rate(Schedule(kind="constant"), 49, 50) == 1.0


def test_what_decays() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1), nn.GroupNorm(2, 8)
    )
    everything = Decay(norms=True, biases=True, depthwise=True)
    assert all(decays(net, everything).values())
    assert {name for name, does in decays(net, Decay()).items() if does} == {"0.weight", "2.weight"}
    spared = decays(net, Decay(biases=True, norms=True, depthwise=False))
    assert [name for name, does in spared.items() if not does] == ["0.weight"]
    groups = make_optimizer(net, Optimizer(), Decay(value=0.01)).param_groups
    counts = [(group["weight_decay"], len(group["params"])) for group in groups]
    assert counts == [(0.01, 2), (0, 6)]


def test_of_repvggs_norms_the_identitys_scale_decays_alone() -> None:
    found = decays(RepVGGBlock(4, 4, 3, 1, 1), Decay(norms="identity"))
    assert {name for name, does in found.items() if does} == {
        "rbr_dense.conv.weight", "rbr_1x1.conv.weight", "rbr_identity.weight"
    }  # fmt: skip


def test_repvggs_own_decay_is_that_of_the_folded_kernel() -> None:
    torch.manual_seed(0)
    block = RepVGGBlock(3, 5, 3, 1, 1, identity=False)
    for branch in (block.rbr_dense, block.rbr_1x1):
        branch.bn.weight.data.normal_()
        branch.bn.running_var.uniform_(0.5, 2)
    together = decays(block, Decay(custom_l2=True))
    assert not together["rbr_dense.conv.weight"]
    assert not together["rbr_1x1.conv.weight"]
    # By hand, tap by tap.
    wide, narrow = (b.conv.weight.detach() for b in (block.rbr_dense, block.rbr_1x1))
    scales = [
        b.bn.weight.detach() / (b.bn.running_var + b.bn.eps).sqrt()
        for b in (block.rbr_dense, block.rbr_1x1)
    ]
    wanted = 0.0
    for o in range(5):
        t3, t1 = float(scales[0][o]), float(scales[1][o])
        for i in range(3):
            for u in range(3):
                for v in range(3):
                    if (u, v) != (1, 1):
                        wanted += float(wide[o, i, u, v]) ** 2
            folded = float(wide[o, i, 1, 1]) * t3 + float(narrow[o, i, 0, 0]) * t1
            wanted += folded**2 / (t3**2 + t1**2)
    assert float(kernel_l2(block).detach()) == pytest.approx(wanted, rel=1e-5)
    kernel_l2(block).backward()
    assert block.rbr_dense.bn.weight.grad is None  # the scales are not trained by it
    assert float(kernel_l2(nn.Linear(2, 2))) == 0


def test_slimming_pushes_by_the_sign() -> None:
    norm = nn.BatchNorm2d(3)
    norm.weight.data = torch.tensor([0.3, 0.0, -2.0])
    (slimming_penalty(nn.Sequential(norm)) * 0.1).backward()
    assert norm.weight.grad.tolist() == pytest.approx([0.1, 0.0, -0.1])


def test_verification_against_all_thresholds() -> None:
    torch.manual_seed(3)
    labels = torch.arange(10).repeat_interleave(12)
    centres = torch.randn(10, 8)
    vectors = nn.functional.normalize(centres[labels] + 0.7 * torch.randn(120, 8))
    accuracy, said = verification(vectors, labels)
    pairs = np.triu_indices(120, 1)
    likeness, same = (vectors @ vectors.T)[pairs], (labels[:, None] == labels)[pairs]
    assert len(said) == 2 * int(same.sum())
    shares = [
        ((likeness > cut)[same].float().mean() + (likeness <= cut)[~same].float().mean()) / 2
        for cut in likeness[::7]
    ]
    assert abs(accuracy - float(max(shares))) < 0.03  # other pairs of two classes, other folds
    assert abs(verification(vectors, labels[torch.randperm(120)])[0] - 0.5) < 0.06
    with pytest.raises(InputError, match="two classes"):
        verification(vectors, torch.zeros(120))


def batches(images, targets, valid, size: int) -> Feed:
    rows = zip(images.split(size), targets.split(size), valid.split(size), strict=True)
    loaded = [Batch(*row, (3,) if at == 0 else ()) for at, row in enumerate(rows)]
    return Feed(loaded, lambda images: images, "cpu")


def test_accuracy_leaves_out_what_cannot_be_read() -> None:
    torch.manual_seed(1)
    logits, targets = torch.randn(23, 7), torch.randint(7, (23,))
    valid = torch.rand(23) > 0.2
    found = judge(lambda x: x, batches(logits, targets, valid, 5), "classify", 7)
    kept, labels = logits[valid], targets[valid]
    top1 = float((kept.argmax(1) == labels).float().mean())
    top5 = float((kept.topk(5).indices == labels[:, None]).any(1).float().mean())
    assert found.metrics["top1"] == pytest.approx(top1, abs=1e-6)
    assert found.metrics["top5"] == pytest.approx(top5, abs=1e-6)
    assert found.metrics["loss"] == pytest.approx(float(nn.functional.cross_entropy(kept, labels)))
    assert (found.images, found.unreadable) == (int(valid.sum()), (3,))
    assert torch.equal(found.answers, kept.argmax(1))


def test_miou_by_hand() -> None:
    torch.manual_seed(2)
    logits, masks = torch.randn(4, 3, 6, 5), torch.randint(3, (4, 6, 5))
    masks[:, 0] = 255
    found = judge(lambda x: x, batches(logits, masks, torch.ones(4).bool(), 2), "segment", 3)
    said, true = logits.argmax(1)[masks != 255], masks[masks != 255]
    shares = [
        ((said == c) & (true == c)).sum() / ((said == c) | (true == c)).sum() for c in range(3)
    ]
    assert found.metrics["miou"] == pytest.approx(float(sum(shares) / 3), abs=1e-6)
    assert found.metrics["pixels"] == pytest.approx(float((said == true).float().mean()), abs=1e-6)


def test_a_class_that_nobody_shows_has_no_share_in_the_mean() -> None:
    masks = torch.tensor([0, 0, 1, 1]).view(1, 2, 2)
    logits = torch.eye(5)[torch.tensor([0, 1, 1, 1])].T.reshape(1, 5, 2, 2)
    found = judge(lambda x: x, batches(logits, masks, torch.ones(1).bool(), 1), "segment", 5)
    assert found.metrics["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-6)
    assert found.metrics["pixels"] == pytest.approx(3 / 4)


def test_further_outputs_count_by_their_weight() -> None:
    class Two(nn.Module):
        def forward(self, x):
            return {"aux": x.flip(1), "main": x}

    x, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    loss, right, answers = Learner(Two(), CrossEntropy(), 0.1)(x, labels)
    wanted = nn.functional.cross_entropy(x, labels) + 0.1 * nn.functional.cross_entropy(
        x.flip(1), labels
    )
    assert torch.allclose(loss, wanted)
    assert (int(right), int(answers)) == (int((x.argmax(1) == labels).sum()), 4)


def test_a_pattern_has_a_rate_of_its_own() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.Linear(2, 2)))
    wanted = Optimizer(factors={"2": 0.1, "2.0.bias": 10})
    groups = make_optimizer(net, wanted, Decay()).param_groups
    factors = {id(p): group["factor"] for group in groups for p in group["params"]}
    found = {name: factors[id(p)] for name, p in net.named_parameters()}
    assert {name: x for name, x in found.items() if x != 1} == {"2.0.weight": 0.1, "2.0.bias": 10}
    decaying = {id(p) for group in groups for p in group["params"] if group["weight_decay"]}
    assert decaying == {id(net[0].weight), id(net[2][0].weight)}
    with pytest.raises(InputError, match=r"factors: 'head' matches no .* parts are 0, 1, 2;"):
        make_optimizer(net, Optimizer(factors={"head": 2}), Decay())
    with pytest.raises(ValueError, match="is not a factor; freeze what must stay"):
        Optimizer(factors={"2": 0})
