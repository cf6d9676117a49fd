"""``nn.MultiheadAttention``: its projections, against a spelled-out attention with gates."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_prune import Channels, IterativePruning, prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.coupling import Activation, Group, Member, find_coupling
from lightning_prune.criteria import MeanActivation, Taylor
from lightning_prune.criteria.statistics import COUNT, AbsoluteActivations, ActivationGradient
from lightning_prune.criteria.statistics.attention import products
from lightning_prune.network.example_input import Example
from lightning_prune.schedules import Rounds

EXAMPLES, QUERIES, KEYS, WIDTH, HEADS = 3, 4, 5, 8, 2
ROWS = (slice(0, WIDTH), slice(WIDTH, 2 * WIDTH), slice(2 * WIDTH, 3 * WIDTH))


def batch(positions: int, seed: int = 0) -> Tensor:
    return torch.randn(EXAMPLES, positions, WIDTH, generator=torch.Generator().manual_seed(seed))


GIVEN: dict[str, Callable[[], tuple[Tensor, Tensor, Tensor]]] = {
    "to itself": lambda: (batch(QUERIES),) * 3,
    "to a memory": lambda: (batch(QUERIES), *(batch(KEYS, 1),) * 2),
    "to keys and values": lambda: (batch(QUERIES), batch(KEYS, 1), batch(KEYS, 2)),
}


def group_of(rows: int) -> Group:
    index = torch.arange(rows)[:, None]
    return Group(
        "attn.in_proj_weight", (Member("attn.in_proj_weight", 0, index, False),), (Activation("attn", -1, index),)
    )


class Wrapped(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, **options)
        for bias in (self.attn.in_proj_bias, self.attn.out_proj.bias):
            if bias is not None:
                nn.init.normal_(bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not self.attn.batch_first:
            given: dict[int, Tensor] = {}  # what is the same stays the same
            query, key, value = (given.setdefault(id(t), t.transpose(0, 1)) for t in (query, key, value))
            return self.attn(query, key, value)[0].transpose(0, 1)
        return self.attn(query, key=key, value=value, need_weights=False)[0]


def spelled_out(attn: nn.MultiheadAttention, given: tuple[Tensor, Tensor, Tensor], gates: list[Tensor]) -> Tensor:
    """The same in few operations; ``gates`` of shape (examples, 1, width) multiply queries, keys and values."""
    biases = [0.0] * 3 if attn.in_proj_bias is None else [attn.in_proj_bias[rows] for rows in ROWS]
    q, k, v = (
        (source @ attn.in_proj_weight[rows].T + bias) * gate
        for source, rows, bias, gate in zip(given, ROWS, biases, gates, strict=True)
    )
    heads = [t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v)]
    weights = (heads[0] @ heads[1].transpose(-1, -2) / (WIDTH / HEADS) ** 0.5).softmax(-1)
    joined = (weights @ heads[2]).transpose(1, 2).flatten(2)
    return F.linear(joined, attn.out_proj.weight, attn.out_proj.bias)


def gathered(statistics: Any, net: nn.Module, given: tuple[Tensor, ...], passes: int = 1) -> Any:
    statistics.attach(net, [group_of(3 * WIDTH)])
    statistics.begin_step(0)
    loss = net(*given).square().sum()
    for _ in range(passes):
        loss.backward(retain_graph=True)
        statistics.commit()
    statistics.detach()
    return statistics.totals


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", GIVEN)
def test_sums_are_those_of_gates(kind: str, bias: bool, batch_first: bool) -> None:
    net, given = Wrapped(bias=bias, batch_first=batch_first), GIVEN[kind]()
    found = gathered(ActivationGradient(), net, given)["attn"]
    gates = [torch.ones(EXAMPLES, 1, WIDTH, requires_grad=True) for _ in range(3)]
    outputs = spelled_out(net.attn, given, gates)
    torch.testing.assert_close(outputs, net(*given))
    wanted = torch.autograd.grad(outputs.square().sum(), gates)
    means = [g.squeeze(1).abs().sum(0) / t.shape[1] for g, t in zip(wanted, given, strict=True)]
    torch.testing.assert_close(found, torch.cat(means))


def test_one_example_without_a_batch() -> None:
    net = Wrapped(batch_first=True)
    inputs = batch(QUERIES)[:1]
    wanted = gathered(ActivationGradient(), net, (inputs,) * 3)["attn"]
    found = gathered(ActivationGradient(), net, (inputs[0],) * 3)["attn"]
    torch.testing.assert_close(found, wanted)


def test_half_precision_reads_casts_of_the_weight() -> None:
    net, given = Wrapped(batch_first=True), GIVEN["to a memory"]()
    wanted = gathered(ActivationGradient(), net, given)["attn"]
    with torch.autocast("cpu", torch.bfloat16):
        found = gathered(ActivationGradient(), net, given)["attn"]
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.02 * float(wanted.max()))


def test_a_kept_graph_may_be_used_again() -> None:
    net, given = Wrapped(), GIVEN["to itself"]()
    once = gathered(ActivationGradient(), net, given)["attn"]
    twice = gathered(ActivationGradient(), net, given, passes=2)["attn"]
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("kind", GIVEN)
def test_means_are_over_the_positions_of_each(kind: str) -> None:
    net, given = Wrapped(batch_first=True), GIVEN[kind]()
    found = gathered(AbsoluteActivations(), net, given)
    weight, bias = net.attn.in_proj_weight, net.attn.in_proj_bias
    means = [(t @ weight[r].T + bias[r]).abs().mean((0, 1)) for t, r in zip(given, ROWS, strict=True)]
    torch.testing.assert_close(found["attn"] / found[COUNT + "attn"], torch.cat(means).detach())


def test_only_products_of_this_layer_are_found() -> None:
    net = Wrapped(batch_first=True)
    first = net.attn(batch(QUERIES), batch(QUERIES), batch(QUERIES))[0]
    second = net.attn(first, first, first)[0]
    weight = net.attn.in_proj_weight
    assert [start for _, start in products(second, [first] * 3, weight)] == [0]
    assert len(list(products(second, [], weight))) == 4  # three more before that
    assert list(products(second, [first] * 3, torch.zeros(1))) == []


def test_what_a_layer_computed_is_let_go() -> None:
    net, given = Wrapped(batch_first=True), GIVEN["to itself"]()
    statistics = ActivationGradient()
    statistics.attach(net, [group_of(3 * WIDTH)])
    gc.collect()
    gc.disable()
    try:
        statistics.begin_step(0)
        outputs = net(*given)
        graph = weakref.ref(outputs)
        outputs.sum().backward()
        statistics.commit()
        del outputs
        assert graph() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("criterion", [Taylor(), MeanActivation()])
@pytest.mark.parametrize("attention", ["head_dims", "heads"])
def test_heads_and_their_dimensions_are_ranked(criterion: Any, attention: Any) -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 12, dropout=0.0, batch_first=True), 2)
    net = nn.Sequential(nn.Linear(3, WIDTH), encoder, nn.Linear(WIDTH, 2))
    inputs = torch.randn(4, 5, 3)
    groups = find_coupling(net, Example.of(inputs), attention).groups.values()
    assert all(group.activations for group in groups)

    def calibrate(copy: nn.Module) -> None:
        copy(inputs).square().sum().backward()

    granularity = Channels(attention=attention)
    report = prune_once(
        net, inputs, criterion=criterion, granularity=granularity, budget=Ratio(0.5), calibrate=calibrate
    )
    assert {before / after for before, after in report.widths.values()} == {2}
    assert net[0].out_features == WIDTH // 2
    assert net(inputs).shape == (4, 5, 2)


def encoder() -> nn.Sequential:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(3, WIDTH), nn.TransformerEncoder(layer, 1), nn.Linear(WIDTH, 2))


def test_compiled_attention_is_seen_as_it_is_or_not_at_all() -> None:
    """In some versions hooks keep the layer out of what is compiled."""
    torch.manual_seed(0)
    net, inputs = encoder(), torch.randn(4, 5, 3)
    groups = list(find_coupling(net, Example.of(inputs)).groups.values())
    found = []
    for backend in (None, "aot_eager"):
        if backend is not None:
            net.compile(backend=backend)
        statistics = ActivationGradient()
        statistics.attach(net, groups)
        statistics.begin_step(0)
        net(inputs).square().sum().backward()
        statistics.commit()
        statistics.detach()
        found.append(statistics.totals)
        assert statistics.unseen() == []
    eager, compiled = found
    name = "1.layers.0.self_attn"
    assert eager.keys() - compiled.keys() <= {name}
    for key, total in compiled.items():
        torch.testing.assert_close(total, eager[key])


def test_frozen_attention_stays(tmp_path) -> None:
    class LitEncoder(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = encoder()
            self.net[1].layers[0].self_attn.requires_grad_(False)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

        def training_step(self, inputs: Tensor, batch_idx: int) -> Tensor:
            return self(inputs).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.01)

    torch.manual_seed(0)
    lit, pruning = LitEncoder(), IterativePruning(Rounds(1, 1, 2), Ratio(0.5), Taylor())
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=4, accelerator="cpu", callbacks=[pruning], default_root_dir=tmp_path, **off)
    with pytest.warns(UserWarning, match=r"no gradient of the projections inside 'net.1.layers.0.self_attn'"):
        trainer.fit(lit, DataLoader(torch.randn(16, 5, 3), 8))
    assert pruning.pruner.event == 2
    layer = lit.net[1].layers[0]
    assert (layer.self_attn.embed_dim, layer.linear1.out_features) == (WIDTH, 6)
