import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_prune import NM, Scope, prune_once
from lightning_prune.budgets import Sparsity
from lightning_prune.criteria import Magnitude, Random, Taylor, Wanda
from lightning_prune.masks.n_of_m import fullest_block, kept_in_block, nm_mask
from lightning_prune.pruners.factory import budget_for
from lightning_prune.pruners.nm_pruner import NMPruner
from lightning_prune.surgery.plan import Plan


def pruner(n: int = 2, m: int = 4) -> NMPruner:
    granularity = NM(n, m)
    budget = budget_for(granularity, None)
    assert budget == Sparsity(1 - n / m)
    return NMPruner(granularity, Magnitude(), budget, Scope())


def by_hand(scores: Tensor, m: int, keep: int) -> Tensor:
    """The same for a matrix, entry by entry."""
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], m):
            block = [float(value) for value in scores[row, start : start + m]]
            for index in sorted(range(m), key=lambda i: (-block[i], i))[:keep]:
                mask[row, start + index] = True
    return mask


@given(st.data())
def test_every_block_keeps_its_best(data) -> None:
    m = data.draw(st.integers(2, 8))
    keep, rows, blocks = (data.draw(st.integers(1, most)) for most in (m, 4, 3))
    few = st.integers(-2, 2).map(float)  # ties are frequent
    scores = torch.tensor(data.draw(st.lists(few, min_size=rows * blocks * m, max_size=rows * blocks * m)))
    scores = scores.reshape(rows, blocks * m)
    mask = nm_mask(scores, None, m, keep)
    assert torch.equal(mask, by_hand(scores, m, keep))
    assert mask.view(rows, blocks, m).sum(-1).eq(keep).all()
    less = data.draw(st.integers(1, keep))
    again = nm_mask(torch.rand(scores.shape), mask, m, less)
    assert again.view(rows, blocks, m).sum(-1).eq(less).all()
    assert not (again & ~mask).any()


def test_blocks_of_a_kernel_lie_along_its_inputs() -> None:
    torch.manual_seed(0)
    scores = torch.rand(3, 8, 2, 5)
    mask = nm_mask(scores, None, 4, 2)
    for y in range(2):
        for x in range(5):
            assert torch.equal(mask[:, :, y, x], by_hand(scores[:, :, y, x], 4, 2))
    assert torch.equal(nm_mask(scores.transpose(0, 1), None, 4, 2, dim=0), mask.transpose(0, 1))
    assert mask.is_contiguous()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.deep = nn.Conv2d(8, 8, 3, groups=2)
        self.each = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, bias=False)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        h = self.each(self.deep(self.stem(images)))
        seen = self.attend(*[h.flatten(2).transpose(1, 2)] * 3)[0]
        return self.head(seen.mean(1)) + self.up(h).mean()


def test_layers_of_all_kinds() -> None:
    torch.manual_seed(0)
    net = Net()
    report = prune_once(net, torch.zeros(1, 3, 9, 9), granularity=NM(2, 4))
    assert report.frozen == {
        "stem.weight": "its 3 inputs are not a multiple of 4",
        "each.weight": "its 1 inputs are not a multiple of 4",
    }
    masks = report.plan.masks
    assert masks.keys() == {
        "deep.weight",
        "up.weight",
        "attend.in_proj_weight",
        "attend.out_proj.weight",
        "head.weight",
    }
    for name, mask in masks.items():
        along = mask.movedim(0 if name.startswith("up") else 1, -1)
        assert along.reshape(-1, 4).sum(-1).eq(2).all(), name
        assert torch.equal(dict(net.named_parameters())[name] != 0, mask)
    assert report.sparsity == 0.5
    assert report.widths["head.weight"] == (40, 20)


def test_groups_of_transposed_convolutions_have_blocks_of_their_own() -> None:
    layer = nn.ConvTranspose2d(4, 4, 3, groups=2)
    with pytest.raises(ValueError, match="'its 2 inputs are not a multiple of 4'"):
        prune_once(layer, torch.zeros(1, 4, 5, 5), granularity=NM(2, 4))
    mask = prune_once(layer, torch.zeros(1, 4, 5, 5), granularity=NM(1, 2)).plan.masks["weight"]
    assert mask.view(2, 2, 2, 3, 3).sum(1).eq(1).all()


def test_masks_stay_where_blocks_fit_no_longer() -> None:
    net, own = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)), pruner(1, 4)
    own.apply(net, own.plan(net, None, 0.5), ())
    kept = torch.arange(6)
    net[1].weight = nn.Parameter(net[1].weight.detach()[:, kept])
    own.masks["1.weight"][0] = True  # a block that is full
    with pytest.warns(UserWarning, match="blocks there now keep more than"):
        own.follow(Plan(keep={"1.weight": {1: kept}}))
    before = own.masks["1.weight"]
    own.apply(net, own.plan(net, None, 1.0), ())
    assert own.masks["1.weight"].equal(before)
    assert own.masks["0.weight"].view(-1, 4).sum(1).eq(1).all()


def test_vectors_stay() -> None:
    report = prune_once(
        nn.Linear(8, 4), torch.zeros(1, 8), granularity=NM(1, 4), scope=Scope(biases_and_norms=True), dry_run=True
    )
    assert report.frozen == {"bias": "a vector has no input dimension"}
    assert report.sparsity == 0.75


def test_any_criterion_for_weights_ranks_blocks() -> None:
    torch.manual_seed(0)
    net, batch = nn.Linear(8, 3), torch.randn(16, 8) * torch.tensor([1.0, 9, 1, 9, 9, 1, 9, 1])
    scores = net.weight.detach().abs() * batch.norm(dim=0)
    prune_once(net, batch, granularity=NM(2, 4), criterion=Wanda(), calibrate=lambda model: model(batch).detach())
    assert torch.equal(net.weight != 0, by_hand(scores, 4, 2))
    with pytest.raises(ValueError, match=re.escape("Taylor(every_n_steps=1) does not score weights")):
        prune_once(net, batch, granularity=NM(2, 4), criterion=Taylor())


def test_a_schedule_goes_from_m_to_n() -> None:
    net, own = nn.Linear(16, 4), pruner(1, 8)
    own.prepare(net, None)
    kept = []
    for fraction in (0.0, 0.1, 0.5, 0.9, 1.0):
        report = own.plan(net, None, fraction)
        own.apply(net, report, ())
        kept.append(int(own.masks["weight"][0, :8].sum()))
        assert fullest_block(own.masks["weight"], 8) == kept[-1]
    assert kept == [8, 7, 4, 2, 1]
    assert own.sparsity == 7 / 8
    assert [kept_in_block(2, 4, f) for f in (0, 0.24, 0.26, 0.74, 0.76, 1)] == [4, 4, 3, 3, 2, 2]


def test_channels_removed_earlier_leave_whole_blocks() -> None:
    net = nn.Linear(12, 4)
    own = pruner()
    own.prepare(net, None)
    plan = Plan(keep={"weight": {1: torch.tensor([0, 1, 2, 4, 5, 6, 8, 9])}})
    own.follow(plan)
    net.weight = nn.Parameter(net.weight[:, plan.keep["weight"][1]].detach())
    own.apply(net, own.plan(net, None, 1.0), ())
    assert own.masks["weight"].view(-1, 4).sum(-1).eq(2).all()


def test_channels_removed_later_are_warned_of(recwarn) -> None:
    net = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[4.0, 3, 1, 1, 1, 1, 3, 4]]))
    own = pruner()
    own.apply(net, own.plan(net, None, 1.0), ())
    own.follow(Plan(keep={"weight": {0: torch.tensor([0])}}))
    own.follow(Plan(keep={"weight": {1: torch.tensor([0, 1, 2, 3])}}))
    assert not recwarn.list
    own = pruner()
    own.apply(net, own.plan(net, None, 1.0), ())
    with pytest.warns(UserWarning, match="blocks there now keep more than 2 of 4 weights. Start NM after"):
        own.follow(Plan(keep={"weight": {1: torch.tensor([0, 1, 6, 7])}}))


def test_what_stays_dense_is_said_once(recwarn) -> None:
    net, own = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 8), nn.Linear(8, 5)), pruner()
    own.prepare(net, None)
    own.prepare(net, None)
    own.apply(net, own.plan(net, None, 1.0), ())
    resumed = pruner()
    resumed.load_state_dict(own.state_dict())
    resumed.prepare(net, None)
    assert [str(warning.message) for warning in recwarn.list] == [
        "1 of 3 parameters in the scope stay dense, with 25.00% of the weights: '0.weight' (its 6 inputs are not a "
        "multiple of 4). Sparsities refer to the other parameters."  # 24 of 24 + 32 + 40
    ]


def test_other_ranks_say_nothing(monkeypatch, recwarn) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        pruner().prepare(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 8)), None)
        assert len(recwarn.list) == (rank == 0)


def test_nothing_is_said_where_nothing_stays_dense(recwarn) -> None:
    pruner().prepare(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), None)
    assert not recwarn.list


def test_nothing_to_work_on() -> None:
    with pytest.raises(
        ValueError, match=re.escape("NM(2, 4) fits no layer: {'weight': 'its 6 inputs are not a multiple of 4'}")
    ):
        prune_once(nn.Linear(6, 4), torch.zeros(1, 6), granularity=NM(2, 4))


def test_it_takes_no_budget() -> None:
    with pytest.raises(ValueError, match=re.escape("NM(n=2, m=4) determines the sparsity; omit the budget")):
        prune_once(nn.Linear(8, 4), torch.zeros(1, 8), granularity=NM(), budget=Sparsity(0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "NM n=0 must be an integer of at least 1"),
        ({"n": True}, "NM n=True must be an integer of at least 1"),
        ({"m": 4.0}, "NM m=4.0 must be an integer of at least 1"),
        ({"n": 4, "m": 4}, "NM n=4 must be less than m=4: n of every m weights are kept"),
    ],
)
def test_arguments(arguments, message) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NM(**arguments)


def test_random_draws_anew_for_every_layer() -> None:
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32))
    masks = prune_once(net, torch.zeros(1, 64), granularity=NM(1, 2), criterion=Random()).plan.masks
    assert not torch.equal(masks["0.weight"][:, :32], masks["2.weight"])
