"""Pruned shapes in checkpoints, and `load_pruned`."""

import copy
import io
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.numbered import EXAMPLE, LitNumbered, Numbered, logits, numbers
from helpers.training import Lit, fit, small_net, trainer_for, widths, zero_share
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core import saving
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch import Tensor, nn

from lightning_prune import Channels, IterativePruning, Weights, load_pruned, prune_once
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.callbacks import PrunedCheckpoints
from lightning_prune.checkpoint.loading import reshape_to
from lightning_prune.checkpoint.manifest import manifest_of, track_plan, track_shapes
from lightning_prune.schedules import Constant, Rounds


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Lit, str, str]:
    """A pruned and trained module, its checkpoint, and one of the weights alone."""
    folder = tmp_path_factory.mktemp("trained")
    lit = Lit(width=12)
    full = ModelCheckpoint(folder, "full")
    bare = ModelCheckpoint(folder, "bare", save_weights_only=True, every_n_epochs=2)
    masks = IterativePruning(Constant(2), Sparsity(0.5), granularity=Weights())
    fit(folder, lit, IterativePruning(Rounds(1, 1, 2), Ratio(0.5), "taylor"), masks, full, bare, max_epochs=4)
    return lit, full.best_model_path, bare.best_model_path


@pytest.mark.parametrize("which", [1, 2], ids=["full", "weights_only"])
def test_a_class_and_a_checkpoint(trained, which) -> None:
    lit, path = trained[0], trained[which]
    loaded = load_pruned(Lit, path)
    assert type(loaded) is Lit
    assert loaded.hparams.width == 12
    assert widths(loaded.net) == [6, 6, 3]
    assert loaded.net[0].out_channels == loaded.net[1].num_features == loaded.net[8].in_features == 6
    assert all(torch.equal(value, lit.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(logits(loaded), logits(lit))
    assert zero_share(loaded) == zero_share(lit) > 0.4
    manifest = loaded.state_dict()._metadata["lightning_prune"]  # a training that goes on from here
    assert manifest["dense_shapes"]["net.8.weight"] == [3, 12]  # still refers to the network as it was built


def test_keywords_go_to_load_from_checkpoint(trained) -> None:
    loaded = load_pruned(Lit, trained[1], lr=0.125, map_location="cpu", strict=True)
    assert loaded.hparams.lr == 0.125
    assert widths(loaded.net) == [6, 6, 3]


@pytest.mark.parametrize("which", [1, 2], ids=["full", "weights_only"])
def test_an_instance_is_changed_in_place(trained, which) -> None:
    lit, path = trained[0], trained[which]
    module = Lit(width=12)
    parameters = [id(p) for p in module.parameters()]
    assert load_pruned(module, path) is module
    assert [id(p) for p in module.parameters()] == parameters
    assert torch.equal(logits(module), logits(lit))


@pytest.mark.parametrize("which", [1, 2], ids=["full", "weights_only"])
def test_the_network_inside_the_module(trained, which) -> None:
    lit, path = trained[0], trained[which]
    net = load_pruned(small_net(12), path)
    assert type(net) is nn.Sequential
    assert torch.equal(logits(net), logits(lit))


def test_a_file_with_a_bare_state_dict(tmp_path) -> None:
    torch.manual_seed(0)
    net = small_net()
    prune_once(net, EXAMPLE, budget=Ratio(0.5))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    loaded = load_pruned(small_net(), tmp_path / "net.pt")
    assert widths(loaded) == [4, 4, 3]
    assert torch.equal(logits(loaded), logits(net))


def test_a_dense_file_loads_too(tmp_path) -> None:
    net = small_net()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    assert torch.equal(logits(load_pruned(small_net(), tmp_path / "net.pt")), logits(net))


def test_a_loaded_network_trains_and_is_pruned_further(trained, tmp_path) -> None:
    loaded = load_pruned(Lit, trained[1])
    save = ModelCheckpoint(tmp_path, "again")
    trainer = fit(tmp_path, loaded, IterativePruning(Constant(1), Ratio(0.5)), save, max_epochs=2)
    assert widths(loaded.net) == [3, 3, 3]
    assert torch.equal(logits(load_pruned(Lit, save.best_model_path)), logits(loaded))
    trainer.test(loaded, ckpt_path=save.best_model_path, verbose=False)


def test_parameters_keep_what_they_are(trained) -> None:
    net = small_net(12).double().to(memory_format=torch.channels_last)
    net[0].weight.requires_grad_(False)
    load_pruned(net, trained[1])
    assert net[0].weight.dtype == torch.float64
    assert not net[0].weight.requires_grad
    assert net[3].weight.requires_grad
    assert net.training


def test_a_file_of_another_network(trained, tmp_path) -> None:
    message = (
        r"'net.0.weight' is \(6, 2, 3, 3\) in the file and \(4, 2, 3, 3\) in Lit: the file was not pruned from this "
        r"network. Build it with the arguments it was trained with."
    )
    with pytest.raises(ValueError, match=message):
        load_pruned(Lit, trained[1], width=4)
    with pytest.raises(ValueError, match=message):
        load_pruned(Lit(width=4), trained[1])
    torch.save({"0.weight": torch.zeros(4)}, tmp_path / "flat.pt")
    with pytest.raises(ValueError, match=r"'0.weight' is \(4,\) in the file and \(8, 2, 3, 3\) in Sequential"):
        load_pruned(small_net(), tmp_path / "flat.pt")


def test_a_file_without_the_tensors_of_the_network(trained) -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        load_pruned(nn.ModuleDict({"other": nn.Linear(2, 2)}), trained[1])


def test_a_failed_load_leaves_the_network_as_it_was(trained) -> None:
    net = Lit(width=4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="was not pruned"):
        load_pruned(net, trained[1])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_class_that_is_no_lightning_module(trained) -> None:
    message = "Sequential has no load_from_checkpoint; build it and pass the instance to load_pruned"
    with pytest.raises(TypeError, match=message):
        load_pruned(nn.Sequential, trained[1])


@pytest.mark.parametrize("path", ["net.ckpt", Path("net.ckpt")])
def test_arguments_in_the_wrong_order(path: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a network or its class, then the path; model=.*net.ckpt"):
        load_pruned(path, nn.Linear(1, 1))


def test_keywords_with_an_instance(trained) -> None:
    message = r"load_pruned takes \['lr', 'strict'\] only with a LightningModule class, not with an instance"
    with pytest.raises(TypeError, match=message):
        load_pruned(Lit(), trained[1], strict=False, lr=0.1)


class OwnLoader(Lit):
    """Has a ``load_state_dict`` of its own."""

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(state_dict, *args, **kwargs)


OWN = OwnLoader.__dict__["load_state_dict"]


@pytest.mark.parametrize("cls", [Lit, OwnLoader])
@pytest.mark.parametrize("arguments", [{}, {"width": 4}, {"width": "wide"}], ids=["loads", "fails", "does_not_build"])
def test_the_class_is_restored(trained, cls, arguments) -> None:
    inherited = LightningModule.load_state_dict
    if arguments:
        with pytest.raises((ValueError, TypeError)):
            load_pruned(cls, trained[1], **arguments)
    else:
        assert widths(load_pruned(cls, trained[1]).net) == [6, 6, 3]
    assert "load_state_dict" not in Lit.__dict__
    assert OwnLoader.__dict__["load_state_dict"] is OWN
    assert LightningModule.load_state_dict is inherited


def test_only_tensors_are_unpickled(tmp_path) -> None:
    torch.save({"state_dict": small_net().state_dict(), "code": print_something}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_pruned(small_net(), tmp_path / "evil.ckpt")


def print_something() -> None: ...


@pytest.mark.parametrize("which", [1, 2], ids=["full", "weights_only"])
def test_a_trainer_without_a_pruner(trained, which, tmp_path) -> None:
    lit, path = trained[0], trained[which]
    with pytest.raises(RuntimeError, match="size mismatch"):
        trainer_for(tmp_path).test(Lit(width=12), ckpt_path=path, verbose=False)
    module = Lit(width=12)
    (found,) = trainer_for(tmp_path, PrunedCheckpoints()).test(module, ckpt_path=path, verbose=False)
    (expected,) = trainer_for(tmp_path).test(lit, verbose=False)
    assert widths(module.net) == [6, 6, 3]
    assert found == expected
    predictions = trainer_for(tmp_path, PrunedCheckpoints()).predict(Predicting(width=12), ckpt_path=path)
    assert torch.equal(torch.cat(predictions)[:8], logits(lit))


class Predicting(Lit):
    predict_dataloader = Lit.train_dataloader

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])


def test_shapes_travel_in_the_state_dict() -> None:
    """Smaller, larger again, and in another order, without a Trainer."""
    net, other = small_net(), small_net()
    track_shapes(net)
    track_shapes(other)
    states = [copy.deepcopy(net.state_dict())]
    for share in (0.25, 0.5):
        prune_once(net, EXAMPLE, budget=Ratio(share))
        buffer = io.BytesIO()
        torch.save(net.state_dict(), buffer)
        buffer.seek(0)
        states.append(torch.load(buffer, weights_only=True))
    assert states[1]._metadata["lightning_prune"]["dense_shapes"]["0.weight"] == [8, 2, 3, 3]
    for n in (2, 0, 1, 2):
        other.load_state_dict(states[n])
        assert widths(other) == [[8, 8, 3], [6, 6, 3], [3, 3, 3]][n]
        assert all(torch.equal(value, states[n][name]) for name, value in other.state_dict().items())
        other(EXAMPLE).sum().backward()


def test_only_what_was_pruned_may_differ() -> None:
    net, other = small_net(8), small_net(6)
    track_shapes(net)
    track_shapes(other)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(net.state_dict())
    prune_once(net, EXAMPLE, budget=Ratio(0.5))
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(net.state_dict())


def test_a_tracked_part_of_a_larger_network() -> None:
    inner = small_net()
    outer = nn.ModuleDict({"inner": inner})
    dense = [list(inner[n].weight.shape) for n in (0, 3)]
    prune_once(inner, EXAMPLE, budget=Ratio(0.5))
    state = outer.state_dict()
    found = state._metadata["lightning_prune"]["dense_shapes"]
    assert [found[f"inner.{n}.weight"] for n in (0, 3)] == dense
    assert all(name in state for name in found)
    outer.load_state_dict(state)
    whole = nn.ModuleDict({"inner": small_net()})
    track_shapes(whole)
    whole.load_state_dict(state)
    assert torch.equal(logits(whole["inner"]), logits(inner))


def test_reshape_to_keeps_devices_and_attributes() -> None:
    net, pruned = small_net(), small_net()
    prune_once(pruned, EXAMPLE, budget=Ratio(0.5))
    net(EXAMPLE).sum().backward()
    reshape_to(net, pruned.state_dict())
    assert net[3].in_channels == net[3].out_channels == net[4].num_features == 4
    assert all(p.grad is None for p in net[3].parameters())
    net(EXAMPLE)


@pytest.fixture(scope="module", params=["head_dims", "heads"])
def numbered(request, tmp_path_factory) -> tuple[LitNumbered, ModelCheckpoint, Any]:
    folder = tmp_path_factory.mktemp("numbered")
    lit, save = LitNumbered(4), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)

    def pruner() -> IterativePruning:
        return IterativePruning(Rounds(1, 1, 2), Ratio(0.5), granularity=Channels(attention=request.param))

    fit(folder, lit, pruner(), save, max_epochs=4)
    return lit, save, pruner


def test_numbers_follow_in_a_training(numbered) -> None:
    lit, save, pruner = numbered
    net = lit.net
    heads = pruner().granularity.attention == "heads"
    assert (net.heads, net.head_dim) == ((2, 8) if heads else (4, 4))
    assert net.inner == net.heads * net.head_dim == net.proj.in_features
    assert net.qkv.out_features == 3 * net.inner
    assert sum(net.sizes) == net.fc.in_features == 8
    assert net.pair == (6, 10)  # never read
    assert type(net.sizes) is list
    manifest = torch.load(save.dirpath + "/epoch=3.ckpt", weights_only=True)["state_dict"]._metadata["lightning_prune"]
    found = manifest["attributes"]["net"]
    assert {name: getattr(net, name) for name in found} == found
    assert set(found) == {"inner", "sizes", "heads" if heads else "head_dim"}


@pytest.mark.parametrize("what", ["class", "instance", "network inside"])
def test_numbers_are_loaded(numbered, what) -> None:
    lit, save, _ = numbered
    for epoch in range(4):
        path = f"{save.dirpath}/epoch={epoch}.ckpt"
        given = {"class": LitNumbered, "instance": LitNumbered(4), "network inside": Numbered(4)}[what]
        loaded = load_pruned(given, path)
        net = loaded if what == "network inside" else loaded.net
        assert logits(net).shape == (8, 3)
        assert sum(net.sizes) == net.fc.in_features
    assert torch.equal(logits(net), logits(lit.net))
    assert numbers(net) == numbers(lit.net)
    assert list(map(type, numbers(net))) == list(map(type, numbers(lit.net)))


def test_a_run_resumed_from_any_epoch_ends_with_the_same_numbers(numbered, tmp_path) -> None:
    lit, save, pruner = numbered
    for epoch in range(3):
        torch.manual_seed(1)
        resumed = LitNumbered(4)
        trainer_for(tmp_path, pruner(), max_epochs=4).fit(resumed, ckpt_path=f"{save.dirpath}/epoch={epoch}.ckpt")
        assert numbers(resumed.net) == numbers(lit.net)
        assert all(torch.equal(v, lit.state_dict()[n]) for n, v in resumed.state_dict().items())


def test_back_to_a_larger_checkpoint_and_forth(numbered) -> None:
    _, save, _ = numbered
    states = [torch.load(f"{save.dirpath}/epoch={epoch}.ckpt", weights_only=True)["state_dict"] for epoch in range(4)]
    lit, expected = (
        LitNumbered(4),
        [load_pruned(LitNumbered, f"{save.dirpath}/epoch={epoch}.ckpt") for epoch in range(4)],
    )
    track_shapes(lit)
    for epoch in (3, 0, 1, 2, 0, 3):
        lit.load_state_dict(states[epoch])
        assert numbers(lit.net) == numbers(expected[epoch].net)
        assert torch.equal(logits(lit), logits(expected[epoch]))


def test_attributes_without_a_trainer() -> None:
    net, other = Numbered(), Numbered()
    track_shapes(net)
    track_shapes(other)
    dense = net.state_dict()
    report = prune_once(net, EXAMPLE, dry_run=True, budget=Ratio(0.5))
    track_plan(net, report.plan)
    assert net.state_dict()._metadata["lightning_prune"]["attributes"] == {}
    prune_once(net, EXAMPLE, budget=Ratio(0.5))
    small = net.state_dict()
    assert small._metadata["lightning_prune"]["attributes"][""]["sizes"] == net.sizes
    other.load_state_dict(small)
    assert numbers(other) == numbers(net)
    assert torch.equal(logits(other), logits(net))
    for module in (net, other):
        module.load_state_dict(dense)
        assert numbers(module) == numbers(Numbered())
        assert logits(module).shape == (8, 3)
    track_plan(Numbered(), report.plan)  # untracked: nothing to do


@pytest.mark.parametrize("attention", ["head_dims", "heads"])
def test_the_state_dict_of_a_network_pruned_once_says_so(tmp_path, attention) -> None:
    net, granularity = Numbered(4), Channels(attention=attention)
    for _ in range(2):
        prune_once(net, EXAMPLE, granularity=granularity, budget=Ratio(0.5))
    torch.save(net.state_dict(), tmp_path / "pruned.pt")
    loaded = load_pruned(Numbered(4), tmp_path / "pruned.pt")
    assert numbers(loaded) == numbers(net) != numbers(Numbered(4))
    assert torch.equal(logits(loaded), logits(net))
    torch.save(loaded.state_dict(), tmp_path / "again.pt")
    assert numbers(load_pruned(Numbered(4), tmp_path / "again.pt")) == numbers(net)


def test_masks_and_dry_runs_leave_no_hooks() -> None:
    net = Numbered(4)
    prune_once(net, EXAMPLE, dry_run=True)
    prune_once(net, EXAMPLE, granularity=Weights())
    assert not net._state_dict_hooks
    assert not net._load_state_dict_pre_hooks


def test_a_network_pruned_once_inside_a_module_that_trains_on(tmp_path) -> None:
    lit = LitNumbered(4)
    prune_once(lit.net, EXAMPLE, budget=Ratio(0.25))
    once = numbers(lit.net)
    torch.save(lit.state_dict(), tmp_path / "once.pt")
    assert numbers(load_pruned(LitNumbered(4), tmp_path / "once.pt").net) == once
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(tmp_path, lit, IterativePruning(Rounds(1, 1, 1), Ratio(0.25)), save, max_epochs=2)
    assert numbers(lit.net) != once
    for epoch, expected in ((0, once), (1, numbers(lit.net))):
        path = f"{save.dirpath}/epoch={epoch}.ckpt"
        assert numbers(load_pruned(LitNumbered, path).net) == expected
        assert numbers(load_pruned(Numbered(4), path)) == expected
    lit.load_state_dict(torch.load(f"{save.dirpath}/epoch=0.ckpt", weights_only=True)["state_dict"])
    assert numbers(lit.net) == once
    assert torch.equal(logits(lit), logits(load_pruned(LitNumbered, f"{save.dirpath}/epoch=0.ckpt")))


class Positions(nn.Module):
    """Adds positions to the channels; they are in no state dict, as with rotary embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("places", torch.linspace(0, 1, 8), persistent=False)
        self.register_buffer("other", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.places) * self.other


@pytest.mark.parametrize("inside", [False, True])
def test_buffers_that_are_in_no_state_dict(tmp_path, inside) -> None:
    def wrapped(net: nn.Module) -> nn.Module:
        return nn.Sequential(net) if inside else net

    x = torch.randn(5, 4)
    net = Positions()
    whole = wrapped(net)
    track_shapes(whole)
    states, outputs = [whole.state_dict()], [whole(x)]
    for _ in range(2):
        prune_once(net, x)
        states.append(copy.deepcopy(whole.state_dict()))
        outputs.append(whole(x))
    torch.save(states[-1], tmp_path / "pruned.pt")
    assert len(net.places) == 2
    loaded = load_pruned(wrapped(Positions()), tmp_path / "pruned.pt")
    assert torch.equal(loaded(x), outputs[-1])
    torch.save(loaded.state_dict(), tmp_path / "again.pt")
    assert torch.equal(load_pruned(Positions(), tmp_path / "again.pt")(x), outputs[-1])
    other = wrapped(Positions())
    track_shapes(other)
    for n in (2, 0, 1, 2, 0):
        for each in (other, whole):
            each.load_state_dict(states[n])
            assert torch.equal(each(x), outputs[n])


@pytest.mark.filterwarnings("error")
def test_a_file_without_metadata_is_loaded_with_a_warning(tmp_path) -> None:
    net = Numbered(4)
    torch.save(dict(net.state_dict()), tmp_path / "dense.pt")
    load_pruned(Numbered(4), tmp_path / "dense.pt")  # nothing is smaller
    prune_once(net, EXAMPLE)
    torch.save(net.state_dict(), tmp_path / "with.pt")
    load_pruned(Numbered(4), tmp_path / "with.pt")
    torch.save(dict(net.state_dict()), tmp_path / "without.pt")
    with pytest.warns(UserWarning, match=r"has no manifest of integers that modules keep about their sizes"):
        load_pruned(Numbered(4), tmp_path / "without.pt")


class Hyperparameters(Lit):
    """With one argument that holds all of them."""

    def __init__(self, hparams: dict[str, Any]) -> None:
        super(Lit, self).__init__()
        self.save_hyperparameters(hparams)
        self.net, self.losses = small_net(hparams["width"]), []


def test_load_from_checkpoint_takes_pruned_files(trained) -> None:
    lit, full, _ = trained
    loaded = Lit.load_from_checkpoint(full, lr=0.125)
    assert (loaded.hparams.lr, loaded.hparams.width) == (0.125, 12)
    assert widths(loaded.net) == [6, 6, 3]
    assert torch.equal(logits(loaded), logits(lit))
    assert "_instantiator" not in lit.hparams


def test_load_from_checkpoint_without_hyperparameters(tmp_path) -> None:
    class Plain(Lit):
        def __init__(self) -> None:
            LightningModule.__init__(self)
            self.net, self.losses = small_net(), []

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05)

    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    lit = Plain()
    fit(tmp_path, lit, IterativePruning(Constant(1), Ratio(0.5)), save, max_epochs=2)
    assert widths(Plain.load_from_checkpoint(tmp_path / "epoch=0.ckpt").net) == [8, 8, 3]
    assert widths(Plain.load_from_checkpoint(tmp_path / "epoch=1.ckpt").net) == [4, 4, 3]
    assert "hyper_parameters" not in torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)  # nothing was pruned yet


class SomeHyperparameters(Lit):
    """With only some of its arguments kept, and not by their names."""

    def __init__(self, width: int = 12, lr: float = 0.05, optimizer: str = "sgd") -> None:
        super(Lit, self).__init__()
        self.save_hyperparameters({"lr": lr, "optimizer": optimizer})
        self.net, self.losses = small_net(width), []


def test_load_from_checkpoint_with_some_hyperparameters(tmp_path) -> None:
    save = ModelCheckpoint(tmp_path, "last")
    fit(tmp_path, SomeHyperparameters(), IterativePruning(Constant(1), Ratio(0.5)), save, max_epochs=2)
    loaded = SomeHyperparameters.load_from_checkpoint(save.best_model_path, width=12)
    assert widths(loaded.net) == [6, 6, 3]
    assert "on_load_checkpoint" not in vars(loaded)


@pytest.mark.parametrize("weights_only", [False, True])
def test_load_from_checkpoint_with_all_hyperparameters_in_one_argument(tmp_path, weights_only) -> None:
    lit = Hyperparameters({"width": 12, "lr": 0.05, "optimizer": "sgd"})
    save = ModelCheckpoint(tmp_path, "last", save_weights_only=weights_only)
    trainer = fit(tmp_path, lit, IterativePruning(Constant(1), Ratio(0.5)), save, max_epochs=2)
    for loaded in (
        Hyperparameters.load_from_checkpoint(save.best_model_path),
        load_pruned(Hyperparameters, save.best_model_path),
    ):
        assert widths(loaded.net) == [6, 6, 3]
        assert dict(loaded.hparams) == {"width": 12, "lr": 0.05, "optimizer": "sgd"}
    trainer.save_checkpoint(tmp_path / "later.ckpt", weights_only=weights_only)
    again = Hyperparameters.load_from_checkpoint(
        tmp_path / "later.ckpt", hparams={"width": 12, "lr": 0.5, "optimizer": "sgd"}
    )
    assert (widths(again.net), again.hparams.lr) == ([6, 6, 3], 0.5)


def test_load_from_checkpoint_of_weights_alone(tmp_path) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_weights_only=True)
    lit = Lit(width=12)
    trainer = fit(tmp_path, lit, IterativePruning(Constant(1), Ratio(0.5)), save, max_epochs=2)
    assert widths(Lit.load_from_checkpoint(tmp_path / "epoch=0.ckpt").net) == [12, 12, 3]
    assert "_instantiator" not in torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["hyper_parameters"]
    loaded = Lit.load_from_checkpoint(tmp_path / "epoch=1.ckpt")
    assert torch.equal(logits(loaded), logits(lit))
    trainer.test(lit, ckpt_path=str(tmp_path / "epoch=0.ckpt"), verbose=False)
    assert widths(lit.net) == [12, 12, 3]


def test_the_users_own_way_of_writing_files_is_kept(tmp_path) -> None:
    class Noting(TorchCheckpointIO):
        def __init__(self) -> None:
            self.written: list[str] = []

        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            self.written.append(Path(path).name)
            super().save_checkpoint(checkpoint, path, storage_options)

    noting, save = Noting(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    pruning = IterativePruning(Constant(1), Ratio(0.5))
    trainer = fit(tmp_path, Lit(), pruning, save, max_epochs=2, plugins=[noting])
    trainer.fit_loop.max_epochs = 3
    trainer.fit(Lit(), ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    assert noting.written == ["epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt"]
    assert widths(Lit.load_from_checkpoint(tmp_path / "epoch=2.ckpt").net) == [4, 4, 3]


def test_the_error_of_an_import_that_is_missing_names_load_pruned(trained) -> None:
    """Lightning from 2.6 on calls only functions that it trusts."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from lightning.pytorch.core import saving
from helpers.training import Lit
assert "lightning_prune" not in sys.modules
assert hasattr(saving, "_ALLOWED_INSTANTIATORS")
try:
    Lit.load_from_checkpoint({trained[1]!r})
except ValueError as error:
    assert "build_as_load_pruned" in str(error), error
else:
    raise AssertionError
import lightning_prune
assert Lit.load_from_checkpoint({trained[1]!r}).net[0].out_channels == 6
"""
    if not hasattr(saving, "_ALLOWED_INSTANTIATORS"):
        pytest.skip("this version of Lightning calls any function")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


class Filtering(Lit):
    """Puts some of its tensors into checkpoints, in a dict of its own."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if "teacher" not in name
        }


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("way", ["async", "filtered"])
def test_files_that_have_lost_the_metadata_of_their_tensors(tmp_path, way, weights_only) -> None:
    cls = Filtering if way == "filtered" else Lit
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_weights_only=weights_only)
    options = {"plugins": [AsyncCheckpointIO()]} if way == "async" else {}
    lit, pruning = cls(width=12), lambda: IterativePruning(Rounds(1, 1, 2), Ratio(0.5))
    fit(tmp_path, lit, pruning(), save, max_epochs=3, **options)
    path = str(tmp_path / "epoch=2.ckpt")
    assert not manifest_of(torch.load(path, weights_only=True)["state_dict"])  # it is what this test is about
    assert torch.equal(logits(cls.load_from_checkpoint(path)), logits(lit))
    assert torch.equal(logits(load_pruned(cls, path)), logits(lit))
    tested = cls(width=12)
    trainer_for(tmp_path, pruning()).test(tested, ckpt_path=path, verbose=False)
    assert widths(tested.net) == [6, 6, 3]
    if not weights_only:
        resumed = cls(width=12)
        trainer_for(tmp_path, pruning(), max_epochs=3).fit(resumed, ckpt_path=str(tmp_path / "epoch=1.ckpt"))
        assert widths(resumed.net) == [6, 6, 3]


def test_single_entries_of_one_argument_cannot_be_changed(tmp_path) -> None:
    lit = Hyperparameters({"width": 12, "lr": 0.05, "optimizer": "sgd"})
    save = ModelCheckpoint(tmp_path, "last")
    fit(tmp_path, lit, IterativePruning(Constant(1), Ratio(0.5)), save, max_epochs=2)
    for load in (Hyperparameters.load_from_checkpoint, partial(load_pruned, Hyperparameters)):
        with pytest.raises(
            ValueError, match=r"'lr' is an entry of 'hparams', which .* pass the whole argument: hparams=\{...\}"
        ):
            load(save.best_model_path, lr=0.7)


def test_the_methods_of_the_users_own_io_are_there(tmp_path) -> None:
    class Flushing(TorchCheckpointIO):
        def flush(self) -> str:
            return "flushed"

    pruning = IterativePruning(Constant(1), Ratio(0.5))
    trainer = fit(tmp_path, Lit(), pruning, max_epochs=2, plugins=[Flushing()])
    assert trainer.strategy.checkpoint_io.flush() == "flushed"
    assert copy.copy(trainer.strategy.checkpoint_io).flush() == "flushed"
    with pytest.raises(AttributeError):
        trainer.strategy.checkpoint_io.missing()


def test_a_later_trainer_writes_files_that_load_from_checkpoint_reads(tmp_path) -> None:
    lit = Lit(width=12)
    fit(tmp_path, lit, IterativePruning(Constant(1), Ratio(0.5)), max_epochs=2)
    save = ModelCheckpoint(tmp_path / "later", save_last=True)
    fit(tmp_path, lit, PrunedCheckpoints(), save, max_epochs=1)
    assert widths(Lit.load_from_checkpoint(save.last_model_path).net) == widths(lit.net) == [6, 6, 3]
