"""Files that earlier versions wrote load in this one, resume, and give the same outputs; see ``write.py``."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from old_nets import NETS, RUNS, Events, OldLit, nonzero, outputs, size, trainer_for
from torch import Tensor, nn
from write import PLACE, renamed, tokens

from lightning_prune import load_pruned
from lightning_prune.callbacks import PrunedCheckpoints
from lightning_prune.cli import main
from lightning_prune.tasks import ImageClassifier

HERE = Path(__file__).parent
VERSIONS = sorted(path.parent for path in HERE.glob("*/expected.pt"))
EXPECTED: dict[Path, dict[str, Any]] = {folder: torch.load(folder / "expected.pt") for folder in VERSIONS}
WRITTEN = [pytest.param(folder, name, id=f"{folder.name}-{name}") for folder in VERSIONS for name in RUNS]
SHRUNK = ("channels", "blocks", "rollback", "halved", "paused", "averaged_module", "both", "grown", "averages")

each_version = pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
each_run = pytest.mark.parametrize(("folder", "name"), WRITTEN)


def expected(folder: Path, name: str) -> dict[str, Any]:
    if name not in EXPECTED[folder]:
        pytest.skip(f"version {folder.name} wrote no such file")
    return EXPECTED[folder][name]


def assert_close(found: Tensor, wanted: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def test_there_are_files_of_the_first_version() -> None:
    written = {path.name for path in (HERE / "0.1.0").glob("*.pt")}
    assert {f"{name}.pt" for name in RUNS} <= written
    assert {"once_module.pt", "once_part.pt", "once_compressed.pt", "weights_only.pt", "whole.pt"} <= written
    assert set(RUNS) <= set(EXPECTED[HERE / "0.1.0"])


# --- checkpoints of a Trainer


@each_run
def test_load_pruned(folder: Path, name: str) -> None:
    wanted, inputs = expected(folder, name), EXPECTED[folder]["inputs"]
    loaded = load_pruned(OldLit, folder / f"{name}.pt")
    assert_close(outputs(loaded, inputs), wanted["outputs"])
    assert (size(loaded.net), nonzero(loaded.net)) == (wanted["sizes"][1], wanted["nonzero"][0])
    if "average_outputs" in wanted:
        assert_close(outputs(loaded.average, inputs), wanted["average_outputs"])
    inside = load_pruned(NETS[RUNS[name].net](), folder / f"{name}.pt")
    assert_close(outputs(inside, inputs), wanted["outputs"])


@each_run
def test_load_from_checkpoint(folder: Path, name: str) -> None:
    """Lightning's own way; files of smaller networks name the function that builds the module."""
    wanted = expected(folder, name)
    named = torch.load(folder / f"{name}.pt", weights_only=True)["hyper_parameters"].get("_instantiator")
    builder = "lightning_prune.callbacks.loading.build_as_load_pruned"
    assert named == (builder if name in SHRUNK else None)
    loaded = OldLit.load_from_checkpoint(folder / f"{name}.pt")
    assert_close(outputs(loaded, EXPECTED[folder]["inputs"]), wanted["outputs"])


@each_version
def test_weights_alone(folder: Path) -> None:
    path, wanted = folder / "weights_only.pt", expected(folder, "channels")
    assert "optimizer_states" not in torch.load(path, weights_only=True)
    for loaded in (load_pruned(OldLit, path), OldLit.load_from_checkpoint(path)):
        assert size(loaded.net) == wanted["sizes"][2]
        assert_close(outputs(loaded, EXPECTED[folder]["inputs"]), wanted["last_outputs"])


@each_version
def test_what_the_command_line_wrote(folder: Path) -> None:
    path, wanted = folder / "config_channels.pt", expected(folder, "config_channels")
    named = torch.load(path, weights_only=True)["hyper_parameters"]["_instantiator"]
    assert named == "lightning_prune.callbacks.loading.build_from_cli_as_load_pruned"
    for loaded in (load_pruned(ImageClassifier, path), ImageClassifier.load_from_checkpoint(path)):
        assert_close(outputs(loaded, wanted["inputs"]), wanted["outputs"])


@each_version
def test_attributes_and_buffers_follow(folder: Path) -> None:
    dense, loaded = NETS["attentive"](), load_pruned(OldLit, folder / "channels.pt").net
    for attention in (dense.attention, loaded.attention):
        assert attention.qkv.out_features == 3 * attention.heads * attention.head_dim
    assert (loaded.attention.heads, dense.attention.head_dim) == (2, 4)
    assert loaded.attention.head_dim < dense.attention.head_dim
    assert loaded.shift.numel() == loaded.stem[0].out_channels < dense.shift.numel()
    assert not torch.equal(loaded.shift, dense.shift[: loaded.shift.numel()])  # those of the kept channels


@each_version
def test_identities_of_both_kinds(folder: Path) -> None:
    net = load_pruned(OldLit, folder / "blocks.pt").net
    assert {type(block).__name__ for block in net.masked} == {"Masked", "Passthrough"}
    assert {type(block) for block in net.plain} >= {nn.Identity}


@each_run
def test_a_training_is_resumed(folder: Path, name: str, tmp_path: Path) -> None:
    """It continues its schedule, and ends with the network that the whole training ended with."""
    wanted, run = expected(folder, name), RUNS[name]
    shutil.copytree(folder, tmp_path / "files")
    here = tmp_path / "run"
    if (folder / name).exists():  # accepted networks lie where the training was
        shutil.copytree(folder / name, here)
    for path in (tmp_path / "files" / f"{name}.pt", *here.rglob("*.ckpt")):
        torch.save(renamed(torch.load(path, weights_only=True), PLACE, str(here)), path)
    lit, events = run.module(), Events()
    trainer_for(here, [*run.callbacks(), events], run.epochs).fit(lit, ckpt_path=str(tmp_path / "files" / f"{name}.pt"))
    assert events.found == wanted["later_events"]
    assert (size(lit.net), nonzero(lit.net)) == (wanted["sizes"][2], wanted["nonzero"][1])
    assert_close(outputs(lit, EXPECTED[folder]["inputs"]), wanted["last_outputs"], atol=1e-4)


@each_version
def test_a_resumed_guard_goes_back_to_the_accepted_file(folder: Path, tmp_path: Path) -> None:
    """Fourteen units are there and have yet to be judged; the file holds sixteen."""
    (accepted,) = (folder / "rollback").rglob("*.ckpt")
    assert size(load_pruned(OldLit, accepted).net) == 16 * 32 + 16 + 16 * 3 + 3
    assert size(load_pruned(OldLit, folder / "rollback.pt").net) == 14 * 32 + 14 + 14 * 3 + 3
    run = RUNS["rollback"]
    lit, (pruning, guard) = run.module(), run.callbacks()
    shutil.copytree(folder / "rollback", tmp_path / "run")
    for path in (folder / "rollback.pt", accepted):
        copy = tmp_path / "run" / path.relative_to(folder / "rollback" if path is accepted else folder)
        torch.save(renamed(torch.load(path, weights_only=True), PLACE, str(tmp_path / "run")), copy)
    resumed = str(tmp_path / "run" / "rollback.pt")
    trainer_for(tmp_path / "run", [pruning, guard], run.epochs).fit(lit, ckpt_path=resumed)
    assert [verdict.rolled_back for verdict in guard.verdicts][2:4] == [True, True]
    assert not list((tmp_path / "run").glob("accepted-*"))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
@each_version
@pytest.mark.parametrize("name", ["channels", "blocks", "averaged_module"])
def test_a_trainer_validates(folder: Path, name: str, tmp_path: Path) -> None:
    wanted, lit = expected(folder, name), RUNS[name].module()
    trainer_for(tmp_path, [PrunedCheckpoints()], 1).validate(lit, ckpt_path=str(folder / f"{name}.pt"), verbose=False)
    assert_close(outputs(lit, EXPECTED[folder]["inputs"]), wanted["outputs"])


# --- state dicts and whole networks


@each_version
def test_state_dicts_after_prune_once(folder: Path) -> None:
    wanted, inputs = expected(folder, "once"), EXPECTED[folder]["inputs"]
    whole = load_pruned(OldLit("recurrent"), folder / "once_module.pt")
    loaded = [whole.net]
    loaded += [load_pruned(NETS["recurrent"](), folder / f"once_{part}.pt") for part in ("module", "part")]
    for net in loaded:
        assert size(net) == wanted["sizes"][1]
        assert net.lstm.hidden_size == net.head.in_features < 8
        assert_close(outputs(net, inputs), wanted["outputs"])
    masked = load_pruned(NETS["convolutions"](), folder / "once_weights.pt")
    assert_close(outputs(masked, inputs), wanted["weights_outputs"])
    blocks = load_pruned(NETS["transformer"](), folder / "once_blocks.pt")
    assert_close(outputs(blocks, tokens()), wanted["blocks_outputs"])


@each_version
def test_a_compressed_file(folder: Path) -> None:
    net = load_pruned(NETS["recurrent"](), folder / "once_compressed.pt")
    assert_close(outputs(net, EXPECTED[folder]["inputs"]), expected(folder, "once")["outputs"])
    assert (folder / "once_compressed.pt").stat().st_size < (folder / "once_part.pt").stat().st_size


@each_version
def test_a_whole_network(folder: Path) -> None:
    net = torch.load(folder / "whole.pt", weights_only=False)
    assert [type(layer).__name__ for layer in net[1].layers] == [
        "TransformerEncoderLayer", "Passthrough", "TransformerEncoderLayer",
    ]  # fmt: skip
    assert type(net[2]) is nn.Identity
    assert_close(outputs(net, tokens()), expected(folder, "whole")["outputs"])


@each_version
@pytest.mark.parametrize("name", ["taylor", "mean_activation", "wanda", "block_influence"])
def test_a_network_that_was_pickled_during_training(folder: Path, name: str) -> None:
    net = torch.load(folder / f"during_{name}.pt", weights_only=False)
    wanted = torch.load(folder / "during_training.pt", weights_only=True)[name]
    assert_close(outputs(net, EXPECTED[folder]["inputs"]), wanted)


@each_version
def test_whole_modules(folder: Path) -> None:
    """A LightningModule and the network in it, after a training, and a module after ``prune_once``."""
    wanted, inputs = expected(folder, "blocks"), EXPECTED[folder]["inputs"]
    for name in ("whole_module", "whole_part"):
        net = torch.load(folder / f"{name}.pt", weights_only=False)
        assert_close(outputs(net, inputs), wanted["last_outputs"])
    lit = torch.load(folder / "whole_channels.pt", weights_only=False)
    assert_close(outputs(lit, inputs), expected(folder, "once")["outputs"])


@each_version
@pytest.mark.parametrize("name", ["whole", "whole_channels", "whole_module"])
def test_state_dicts_of_whole_networks_still_name_what_was_removed(folder: Path, name: str, tmp_path: Path) -> None:
    old = torch.load(folder / f"{name}.pt", weights_only=False)
    torch.save(old.state_dict(), tmp_path / "state.pt")
    dense = {"whole": NETS["transformer"], "whole_module": lambda: OldLit("residual")}
    new = load_pruned(dense.get(name, lambda: OldLit("recurrent"))(), tmp_path / "state.pt")
    inputs = tokens() if name == "whole" else EXPECTED[folder]["inputs"]
    assert size(new) == size(old)
    assert torch.equal(outputs(new, inputs), outputs(old, inputs))


# --- the command line


def configs(folder: Path) -> list[Path]:
    return sorted(folder.glob("config_*.yaml"))


CONFIGS = [pytest.param(path, id=f"{path.parent.name}-{path.stem}") for folder in VERSIONS for path in configs(folder)]
each_config = pytest.mark.parametrize("path", CONFIGS)


@pytest.fixture
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-prune"])  # LightningCLI warns of arguments besides those given to it


@each_config
@pytest.mark.usefixtures("_in_a_folder_of_its_own")
def test_a_config_is_parsed(path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(path), "--print_config"])
    assert not ended.value.code
    printed, saved = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(path.read_text())
    for part in ("model", "data", "trainer"):
        assert_holds(printed[part], saved[part], part)


def assert_holds(printed: Any, saved: Any, where: str) -> None:
    """All that was saved is there, whatever arguments there are besides."""
    if isinstance(saved, dict):
        assert saved.keys() <= printed.keys(), where
        for key, value in saved.items():
            assert_holds(printed[key], value, f"{where}.{key}")
    elif isinstance(saved, list):
        assert len(printed) == len(saved), where
        for number, value in enumerate(saved):
            assert_holds(printed[number], value, f"{where}[{number}]")
    else:
        assert printed == saved, where


@each_config
@pytest.mark.usefixtures("_in_a_folder_of_its_own")
@pytest.mark.filterwarnings("ignore:.*stay dense, with .* of the weights")
def test_a_config_runs(path: Path) -> None:
    main(["fit", "--config", str(path), "--trainer.fast_dev_run=1"])


@each_version
@pytest.mark.parametrize("name", ["channels", "blocks", "weights"])
def test_inspect(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Numbers and names are there, in whatever words around them."""
    path = folder / f"{name}.pt"
    content = torch.load(path, weights_only=True)
    state, manifest = content["state_dict"], content["lightning_prune_manifest"] if name in SHRUNK else {}
    monkeypatch.setenv("COLUMNS", "200")
    main(["inspect", str(path)])
    printed = capsys.readouterr().out
    lines = printed.replace(str(path), "").splitlines()
    now, left = sum(v.numel() for v in state.values()), sum(int(torch.count_nonzero(v)) for v in state.values())
    assert {f"{now:,}", f"{left:,}"} <= set(re.findall(r"\d[\d,]*\d", printed))
    assert f"epoch {RUNS[name].saved}" in printed
    shapes = {key: shape for key, shape in manifest.get("dense_shapes", {}).items() if len(shape) > 1}
    for key, shape in shapes.items():
        (line,) = (line for line in lines if key in line.split())
        assert list(map(int, re.findall(r"\d+", line.replace(key, "")))) == [*shape, *state[key].shape]
    for module, values in manifest.get("attributes", {}).items():
        for attribute, value in values.items():
            assert any(line.split() == [module, attribute, str(value)] for line in lines), attribute
    for module in manifest.get("skipped", {}):
        assert any(module in line.split() for line in lines), module
    events = [e for s in content["callbacks"].values() for e in s.get("history", {}).get("events", [])]
    assert len(events) >= 2
    for event in events:
        assert any({str(event["step"]), f"{event['sparsity']:.4f}"} <= set(line.split()) for line in lines)
    if name == "channels":
        assert shapes
        assert manifest["attributes"]["net.attention"].keys() == {"head_dim"}
        assert manifest["buffers"].keys() == {"net.shift"}
    if name == "blocks":
        assert len(manifest["skipped"]) == 2
