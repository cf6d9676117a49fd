"""Optimizers under surgery: after each event training equals that of a network built with the small widths.

The reference is such a network, trained by a plain loop in float64, with weights and optimizer state cut by hand.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from helpers.training import BATCH, STEPS, Adversaries, Events, Lit, fit, images, trainer_for, widths
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import IterativePruning, Plan, Report, Scope, Weights
from lightning_prune.budgets import Params, Ratio, Sparsity
from lightning_prune.schedules import Constant, Rounds

Named = list[tuple[str, nn.Parameter]]
Make = Callable[[Named], optim.Optimizer]

EPOCHS = 4
SETTINGS: list[tuple[type[optim.Optimizer], dict[str, Any]]] = [
    (optim.SGD, {}),
    (optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
    (optim.SGD, {"momentum": 0.8, "dampening": 0.5}),
    (optim.Adam, {}),
    (optim.Adam, {"amsgrad": True, "weight_decay": 1e-3}),
    (optim.AdamW, {"weight_decay": 0.1}),
    (optim.AdamW, {"amsgrad": True}),
    (optim.NAdam, {"weight_decay": 1e-3, "decoupled_weight_decay": True}),
    (optim.RAdam, {"weight_decay": 1e-3}),
    (optim.Adamax, {}),
    (optim.Adadelta, {"lr": 0.5}),
    (optim.Adagrad, {"lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    (optim.RMSprop, {}),
    (optim.RMSprop, {"momentum": 0.5, "centered": True}),
    (optim.ASGD, {"t0": 3, "lambd": 1e-2}),
    (optim.Rprop, {}),
    (optim.Adafactor, {"weight_decay": 0.01}),
]


def _all_of(cls: type[optim.Optimizer], options: dict[str, Any]) -> Make:
    return lambda named: cls([p for _, p in named], **{"lr": 0.01, **options})  # type: ignore[call-arg]


def _decay_in_groups(named: Named) -> optim.Optimizer:
    plain = [p for _, p in named if p.dim() == 1]
    return optim.AdamW([{"params": plain, "weight_decay": 0.0}, {"params": [p for _, p in named if p.dim() > 1]}], 0.01)


def _group_for_each(named: Named) -> optim.Optimizer:
    groups = [{"params": [p], "weight_decay": 0.01 * n, "lr": 0.002 * (n + 1)} for n, (_, p) in enumerate(named)]
    return optim.SGD(groups[::-1], momentum=0.9)


def _implementations(cls: type[optim.Optimizer]) -> Iterable[dict[str, bool]]:
    accepted = inspect.signature(cls).parameters
    yield from [{"foreach": False}, {"foreach": True}] if "foreach" in accepted else [{}]
    if cls in (optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad):  # on a CPU
        yield {"fused": True}


OPTIMIZERS: dict[str, Make] = {
    " ".join([cls.__name__, *(f"{key}={value}" for key, value in (options | how).items())]): _all_of(cls, options | how)
    for cls, options in SETTINGS
    for how in _implementations(cls)
} | {
    "weight decay by kind": _decay_in_groups,
    "a group for each parameter": _group_for_each,
    "a learning rate in a tensor": _all_of(optim.Adam, {"lr": torch.tensor(0.01)}),
}
if hasattr(optim, "Muon"):
    OPTIMIZERS["Muon"] = lambda named: optim.Muon([p for _, p in named if p.dim() == 2], lr=0.01)
PLAIN = ("SGD foreach=False", "SGD foreach=True", "SGD fused=True")  # they remember nothing


class Net(nn.Module):
    """Square kernels and matrices, so that sizes do not identify dimensions."""

    def __init__(self, *outs: int) -> None:
        super().__init__()
        a, b, c, d = outs or (6, 6, 6, 6)
        self.first, self.norm = nn.Conv2d(2, a, 3, padding=1, bias=False), nn.BatchNorm2d(a)
        self.second, self.third = nn.Conv2d(a, b, 3, padding=1), nn.Linear(b, c)
        self.fourth, self.last = nn.Linear(c, d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3))
        return self.last(self.fourth(self.third(x).relu()).relu())


def exact_images() -> TensorDataset:
    inputs, labels = images().tensors
    return TensorDataset(inputs.double(), labels)


class Learner(LightningModule):
    def __init__(self, make: Make) -> None:
        super().__init__()
        self.net, self.make = Net().double(), make

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.make(list(self.net.named_parameters()))

    def train_dataloader(self) -> Any:
        return DataLoader(exact_images(), batch_size=BATCH)


States = dict[str, dict[str, Any]]


def states_of(optimizers: Iterable[optim.Optimizer], module: nn.Module) -> States:
    """Parameter name -> copy of its optimizer state."""
    found: States = {}
    for optimizer in optimizers:
        for name, parameter in module.named_parameters():
            if parameter in optimizer.state:
                state = optimizer.state[parameter].items()
                found[name] = {key: v.clone() if isinstance(v, Tensor) else v for key, v in state}
    return found


def cut(value: Any, key: str, dims: dict[int, Tensor]) -> Any:
    """The kept part of an optimizer state, chosen by its name and not by its shape."""
    if not isinstance(value, Tensor) or key in ("step", "mu", "eta", "mu_product"):
        return value
    for dim, index in dims.items():
        summed = value.dim() - {"row_var": 1, "col_var": 2}.get(key, 0)  # one after the last where there is none
        if dim != summed:
            value = value.index_select(dim, index)
    return value


class Cuts(Callback):
    """Slices weights and optimizer state by hand before each event, and compares them with those after it."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.states: States = {}
        self.events = self.cut = 0

    def on_before_prune(self, trainer: Trainer, pl_module: LightningModule, pruning: IterativePruning) -> None:
        self.before = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.states_before = states_of(trainer.optimizers, pl_module)
        self.groups = [_groups(optimizer) for optimizer in trainer.optimizers]

    def on_prune(self, trainer: Trainer, pl_module: LightningModule, plan: Plan, report: Report) -> None:
        self.events += 1
        self.weights = {name: cut(v, "", plan.keep.get(name, {})) for name, v in self.before.items()}
        self.states = {
            name: {key: cut(value, key, plan.keep.get(name, {})) for key, value in state.items()}
            for name, state in self.states_before.items()
        }
        self.cut += sum(
            value.shape != self.states_before[name][key].shape
            for name, state in self.states.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        )
        assert_same(pl_module.state_dict(), self.weights)
        assert_same_states(states_of(trainer.optimizers, pl_module), self.states)
        assert [_groups(optimizer) for optimizer in trainer.optimizers] == self.groups


def _groups(optimizer: optim.Optimizer) -> list[dict[str, Any]]:
    return [{**group, "params": [id(p) for p in group["params"]]} for group in optimizer.param_groups]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.shape == expected[name].shape, name
        assert torch.allclose(value, expected[name], rtol=tolerance, atol=tolerance), name


def assert_same_states(found: States, expected: States, tolerance: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, state in found.items():
        assert state.keys() == expected[name].keys(), name
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        assert_same(tensors, {key: expected[name][key] for key in tensors}, tolerance)


def uneven(schedule: Any) -> IterativePruning:
    return IterativePruning(schedule, Ratio(0.4, per_layer=False))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_equals_that_of_a_small_network(tmp_path, name) -> None:
    lit, cuts = Learner(OPTIMIZERS[name]), Cuts()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is reset")
        trainer = fit(tmp_path, lit, uneven(Rounds(1, 2, 2)), cuts, max_epochs=EPOCHS)
    assert cuts.events == 2
    assert (cuts.cut > 0) == (name not in PLAIN)
    assert len(set(widths(lit.net)[:-1])) > 1

    small = Net(*widths(lit.net)[:-1]).double()
    small.load_state_dict({key.removeprefix("net."): value for key, value in cuts.weights.items()})
    reference = OPTIMIZERS[name](list(small.named_parameters()))
    for key, parameter in small.named_parameters():
        if f"net.{key}" in cuts.states:
            reference.state[parameter] = {
                k: v.clone() if isinstance(v, Tensor) else v for k, v in cuts.states[f"net.{key}"].items()
            }
    for x, labels in lit.train_dataloader():
        reference.zero_grad()
        F.cross_entropy(small(x), labels).backward()
        reference.step()

    assert not torch.equal(small.last.weight, cuts.weights["net.last.weight"])
    assert_same(lit.net.state_dict(), small.state_dict(), 1e-12)
    found = {key.removeprefix("net."): state for key, state in states_of(trainer.optimizers, lit).items()}
    assert_same_states(found, states_of([reference], small), 1e-12)


def test_no_optimizer_of_torch_is_left_out() -> None:
    everything = {
        name for name, cls in vars(optim).items() if inspect.isclass(cls) and issubclass(cls, optim.Optimizer)
    }
    tested = {type(make(list(Net().named_parameters()))).__name__ for make in OPTIMIZERS.values()}
    assert everything - tested == {"Optimizer", "LBFGS", "SparseAdam"}  # refused; of its own kind, below


class Words(LightningModule):
    """Only an embedding is trained; its gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.read = nn.Embedding(7, 6, sparse=True), nn.Linear(6, 3).requires_grad_(False)

    def forward(self, words: Tensor) -> Tensor:
        return self.read(self.table(words).mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> optim.Optimizer:
        return optim.SparseAdam(self.table.parameters(), 0.01)

    def train_dataloader(self) -> Any:
        words = torch.randint(0, 7, (32, 4), generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(words, words[:, 0] % 3), batch_size=BATCH)


def test_sparse_gradients(tmp_path) -> None:
    lit, cuts = Words(), Cuts()
    fit(tmp_path, lit, IterativePruning(Rounds(1, 1, 2), Ratio(0.5)), cuts, max_epochs=3)
    assert (cuts.events, cuts.cut) == (2, 4)
    assert lit.table.weight.shape == (7, 3)
    assert not torch.equal(lit.table.weight, cuts.weights["table.weight"])


class Flat(optim.Optimizer):
    """Keeps momentum as one flat tensor, as block-wise optimizers do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            row = state.setdefault("row", torch.zeros(p.numel(), dtype=p.dtype))
            p.sub_(row.mul_(0.9).add_(p.grad.flatten()).view_as(p), alpha=0.05)
        return loss


def test_state_that_cannot_be_sliced_is_reset_with_one_warning(tmp_path) -> None:
    lit = Learner(lambda named: Flat([p for _, p in named]))
    left: list[set[str]] = []

    class Left(Callback):
        def on_prune(self, trainer: Trainer, pl_module: LightningModule, plan: Plan, report: Report) -> None:
            assert states_of(trainer.optimizers, pl_module).keys().isdisjoint(plan.keep)
            left.append(set(states_of(trainer.optimizers, pl_module)))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, lit, uneven(Constant(1)), Left(), max_epochs=3)
    said = [str(w.message) for w in caught if "is reset" in str(w.message)]
    assert len(said) == 1
    assert "Flat keeps 'row'" in said[0]
    assert "of 10 pruned parameters" in said[0]
    assert left == [{"net.last.bias"}]


class Duel(Adversaries):
    """Adversaries of any width that alternate with `toggle_optimizer`."""

    def __init__(self, generator: int = 16, critic: int = 12) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, generator), nn.ReLU(), nn.Linear(generator, 6))
        self.critic = nn.Sequential(nn.Linear(6, critic), nn.ReLU(), nn.Linear(critic, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        noise, real = batch[0].flatten(1)[:, :4], batch[0].flatten(1)[:, :6]
        for part, optimizer in zip((self.generator, self.critic), self.optimizers(), strict=True):
            self.toggle_optimizer(optimizer)
            fake = self(noise)
            loss = F.softplus(-fake) if part is self.generator else F.softplus(fake) + F.softplus(-self.critic(real))
            optimizer.zero_grad()
            self.manual_backward(loss.mean())
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.generator.parameters() if p.dim() > 1]
        vectors = [p for p in self.generator.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0, "lr": 0.02}]
        return optim.AdamW(groups, 0.01), optim.SGD(self.critic.parameters(), 0.01, momentum=0.9)


class GoOn(Callback):
    """Begins a training with weights and optimizer state that were sliced by hand."""

    def __init__(self, cuts: Cuts) -> None:
        self.cuts = cuts

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.load_state_dict(self.cuts.weights)
        for optimizer in trainer.optimizers:
            for name, parameter in pl_module.named_parameters():
                held = any(parameter is p for group in optimizer.param_groups for p in group["params"])
                if held and name in self.cuts.states:
                    optimizer.state[parameter] = dict(self.cuts.states[name])


def test_alternating_adversaries_train_as_if_built_small(tmp_path) -> None:
    gan, cuts = Duel(), Cuts()
    stay = Scope(exclude=["generator.2"])  # real images have as many features
    pruning = IterativePruning(Rounds(1, 1, 2), Ratio(0.5), scope=stay)
    trainer = fit(tmp_path, gan, pruning, cuts, max_epochs=4, precision="64-true")
    assert cuts.events == 2
    assert widths(gan) == [8, 6, 6, 1]
    assert {name for name, p in gan.named_parameters() if not p.requires_grad} == set()

    small = Duel(8, 6)
    control = fit(tmp_path, small, GoOn(cuts), max_epochs=2, precision="64-true")
    assert_same(gan.state_dict(), small.state_dict(), 1e-12)
    assert_same_states(states_of(trainer.optimizers, gan), states_of(control.optimizers, small), 1e-12)


SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=24),  # moves the momentum as well
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "warm-up, then cosine": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.CosineAnnealingLR(o, 4)], [2]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "swa": lambda o: SWALR(o, 0.2, anneal_epochs=3),
}


class Scheduled(Lit):
    """Records the learning rate of each batch."""

    def __init__(self, scheduler: Callable[[optim.Optimizer], Any], interval: str) -> None:
        super().__init__()
        self.scheduler, self.interval = scheduler, interval
        self.set: list[list[tuple[float, float]]] = []

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.dim() > 1]
        vectors = [p for p in self.parameters() if p.dim() == 1]
        groups = [{"params": matrices}, {"params": vectors, "lr": 0.01, "weight_decay": 0.0}]
        optimizer = optim.SGD(groups, 0.05, momentum=0.9, weight_decay=0.01)
        scheduler = {"scheduler": self.scheduler(optimizer), "interval": self.interval, "monitor": "same"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        groups = self.optimizers().optimizer.param_groups
        self.set.append([(group["lr"], group["momentum"]) for group in groups])
        self.log("same", 1.0)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_learning_rates_are_those_of_an_unpruned_training(tmp_path, name, interval) -> None:
    runs = []
    for callbacks in ([IterativePruning(Rounds(2, 5, 3, unit="step"), Ratio(0.5))], []):
        lit = Scheduled(SCHEDULERS[name], interval)
        trainer = fit(tmp_path, lit, *callbacks, max_epochs=6)
        runs.append((lit.set, trainer.lr_scheduler_configs[0].scheduler.state_dict()))
        assert widths(lit.net) == ([4, 4, 3] if callbacks else [8, 8, 3])
    assert runs[0][0] == runs[1][0]
    assert len({groups[0] for groups in runs[0][0]}) > 2
    assert runs[0][1].keys() == runs[1][1].keys()


class Masked(Learner):
    """Records masked weights and their optimizer state after each step."""

    def __init__(self, make: Make) -> None:
        super().__init__(make)
        self.hidden: list[int] = []
        self.remembered = self.live = 0

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        matrices = [p for p in self.net.parameters() if p.dim() > 1]
        self.hidden.append(sum(int((p == 0).sum()) for p in matrices))
        for p in matrices:
            for value in optimizer.optimizer.state[p].values():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    self.remembered += int((value[p == 0] != 0).sum())
                    self.live += int((value[p != 0] != 0).sum())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_keep_no_state_of_masked_weights(tmp_path, name) -> None:
    lit = Masked(OPTIMIZERS[name])
    matrices = sum(p.numel() for p in lit.net.parameters() if p.dim() > 1)
    fit(tmp_path, lit, IterativePruning(Rounds(1, 1, 2), Sparsity(0.5), granularity=Weights()), max_epochs=EPOCHS)
    assert lit.hidden == [round(matrices * share) for share in (0, 0.25, 0.5, 0.5) for _ in range(STEPS)]
    assert lit.remembered == 0
    assert (lit.live > 0) == (name not in PLAIN and "Adafactor" not in name)  # factors belong to no single weight


class Averaging(Lit):
    """Averages its network by hand, as the documentation of `torch.optim.swa_utils` does."""

    def __init__(self, width: int = 8, ema: bool = True) -> None:
        super().__init__(width)
        how = {"multi_avg_fn": get_ema_multi_avg_fn(0.6), "use_buffers": True} if ema else {}
        self.average = AveragedModel(self.net, **how)
        self.zeros: list[bool] = []

    def configure_optimizers(self) -> optim.Optimizer:
        return optim.SGD(self.parameters(), 0.05, momentum=0.9)

    def on_train_batch_end(self, *_: Any) -> None:
        self.average.update_parameters(self.net)
        pairs = zip(self.net.parameters(), self.average.parameters(), strict=True)
        self.zeros.append(all(bool((average[p == 0] == 0).all()) for p, average in pairs))

    def on_train_end(self) -> None:
        update_bn(images().tensors[0].to(self.dtype).split(BATCH), self.average)


@pytest.mark.parametrize("ema", [True, False])
def test_an_average_equals_that_of_a_small_network(tmp_path, ema) -> None:
    lit, cuts = Averaging(ema=ema), Cuts()
    fit(tmp_path, lit, IterativePruning(Rounds(1, 1, 2), Ratio(0.5)), cuts, max_epochs=4, precision="64-true")
    assert cuts.events == 2
    assert widths(lit.average) == widths(lit.net) == [4, 4, 3]
    small = Averaging(4, ema)
    fit(tmp_path, small, GoOn(cuts), max_epochs=2, precision="64-true")
    assert int(lit.average.n_averaged) == 4 * STEPS
    assert_same(lit.state_dict(), small.state_dict(), 1e-12)
    assert not torch.equal(lit.average.module[0].weight, lit.net[0].weight)


def test_an_average_of_masked_weights_stays_zero(tmp_path) -> None:
    lit = Averaging()
    pruning = IterativePruning(Rounds(1, 1, 2), Sparsity(0.6), granularity=Weights())
    fit(tmp_path, lit, pruning, max_epochs=4)
    assert all(lit.zeros)
    for p, average in zip(lit.net.parameters(), lit.average.parameters(), strict=True):
        assert torch.equal(p == 0, average == 0)
    assert sum(int((p == 0).sum()) for p in lit.net.parameters()) > 0.5 * sum(p.numel() for p in lit.net.parameters())


class Keeper(Callback):
    """Averages a part of the network, or all of it, in a callback."""

    def __init__(self, part: str) -> None:
        self.part, self.averages = part, []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.averages = [AveragedModel(pl_module.get_submodule(self.part))]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.averages[0].update_parameters(pl_module.get_submodule(self.part))


@pytest.mark.parametrize("part", ["net", "", "net.3"])
@pytest.mark.parametrize("masks", [False, True], ids=["channels", "weights"])
def test_an_average_kept_by_a_callback_is_pruned(tmp_path, part, masks) -> None:
    lit, keeper = Lit(), Keeper(part)
    pruning = IterativePruning(Rounds(1, 1, 2), Sparsity(0.5), granularity=Weights() if masks else None)
    fit(tmp_path, lit, keeper, pruning, max_epochs=3)
    own = lit.get_submodule(part)
    for p, average in zip(own.parameters(), keeper.averages[0].parameters(), strict=True):
        assert p.shape == average.shape
        assert torch.equal(p == 0, average == 0)
    assert (widths(lit.net) == [8, 8, 3]) == masks


def test_an_average_is_resumed(tmp_path) -> None:
    runs = []
    for ckpt_path in (None, tmp_path / "epoch=2.ckpt"):
        torch.manual_seed(0 if ckpt_path is None else 1)
        lit = Averaging()
        save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        trainer = trainer_for(tmp_path, IterativePruning(Rounds(1, 2, 2), Ratio(0.5)), save, max_epochs=5)
        trainer.fit(lit, ckpt_path=ckpt_path)
        runs.append(lit.state_dict())
        assert widths(lit.average) == [4, 4, 3]
    assert_same(*runs)


@pytest.mark.parametrize("budget", [Ratio(0.5), Params(keep=0.4)], ids=str)
def test_sizes_count_averages_that_are_pruned(tmp_path, budget) -> None:
    lit, plain, events = Averaging(), Lit(), Events()
    fit(tmp_path, lit, IterativePruning(Constant(1), budget), events, max_epochs=2)
    fit(tmp_path, plain, IterativePruning(Constant(1), budget), max_epochs=2)
    assert widths(lit.average) == widths(lit.net) == widths(plain.net)
    (report,) = events.reports
    assert report.after.params == sum(p.numel() for p in lit.parameters())
    assert report.sparsity == pytest.approx(1 - report.after.params / report.before.params)
    assert not [name for name in report.frozen if name.startswith("average")]


def test_masks_are_chosen_among_the_weights_of_the_network(tmp_path) -> None:
    lit, events = Averaging(), Events()
    pruning = IterativePruning(Constant(1), Sparsity(0.5), granularity=Weights())
    fit(tmp_path, lit, pruning, events, max_epochs=2)
    matrices = [p for p in lit.net.parameters() if p.dim() > 1]
    assert sum(int((p == 0).sum()) for p in matrices) == sum(p.numel() for p in matrices) // 2
    assert not [name for name in events.reports[0].widths if name.startswith("average")]


def test_an_average_used_by_forward_in_eval_mode_is_pruned(tmp_path) -> None:
    class Switching(Averaging):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if self.training else self.average(x)

    lit, events = Switching(), Events()
    fit(tmp_path, lit, IterativePruning(Constant(1), Ratio(0.5)), events, max_epochs=3)
    assert widths(lit.average) == widths(lit.net) == [4, 4, 3]
    assert not [name for name in events.reports[0].widths if name.startswith("average")]
