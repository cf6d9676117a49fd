"""AccuracyGuard, with a module that logs a scripted metric for exact verdicts."""

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.scripted import BATCHES, WIDTH, Scripted, loader, pruning
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_prune import AccuracyGuard, load_pruned
from lightning_prune.schedules import Rounds, Schedule

NAN = math.nan


class Events(Callback):
    """Records the epochs of events, and all verdicts."""

    def __init__(self) -> None:
        self.at: list[tuple[int, int, int]] = []  # epoch, step, width after
        self.verdicts: list[Any] = []

    def on_prune(self, trainer: pl.Trainer, pl_module: Scripted, plan: Any, report: Any) -> None:
        self.at.append((trainer.current_epoch, trainer.global_step, pl_module.width))

    def on_verdict(self, trainer: pl.Trainer, verdict: Any) -> None:
        self.verdicts.append(verdict)

    @property
    def epochs(self) -> list[int]:
        return [epoch for epoch, _, _ in self.at]


def fit(
    script: list[float],
    guard: AccuracyGuard,
    epochs: int,
    root: Path,
    schedule: Schedule | None = None,
    callbacks: tuple[Callback, ...] = (),
    ckpt_path: str | None = None,
    **arguments: Any,
) -> tuple[Scripted, Events, pl.Trainer]:
    torch.manual_seed(0)
    module, events = Scripted(script), Events()
    settings: dict[str, Any] = {"enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[pruning(schedule), guard, events, *callbacks],
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{**settings, **arguments},
    )
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return module, events, trainer


def values(guard: AccuracyGuard) -> list[float]:
    return [verdict.value for verdict in guard.verdicts]


# --- when it judges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_judges_the_last_validation_before_each_event_and_the_last_of_all(tmp_path: Path, sanity_steps: int) -> None:
    # Events at the start of epochs 2, 4 and 6; the dips after epochs 0, 2, 4 and 6 do not count.
    script = [0.1, 0.90, 0.2, 0.89, 0.3, 0.88, 0.4, 0.87]
    guard = AccuracyGuard("score", max_drop=0.05)
    module, events, _ = fit(script, guard, 8, tmp_path, num_sanity_val_steps=sanity_steps)
    assert events.epochs == [2, 4, 6]
    assert module.width == WIDTH - 3
    assert values(guard) == pytest.approx([0.90, 0.89, 0.88, 0.87])
    assert [v.epoch for v in guard.verdicts] == [1, 3, 5, 7]
    assert [v.reference for v in guard.verdicts] == [None, *[pytest.approx(0.90)] * 3]
    assert all(v.kept for v in guard.verdicts)
    assert events.verdicts == guard.verdicts


def test_the_network_that_is_judged_is_the_one_before_the_event(tmp_path: Path) -> None:
    module, _, _ = fit([0.9], AccuracyGuard("score", max_drop=0.05), 5, tmp_path)
    validated = [entry for entry in module.history if entry.startswith("val")]
    assert validated == [f"val {WIDTH}"] * 2 + [f"val {WIDTH - 1}"] * 2 + [f"val {WIDTH - 2}"]


def test_a_validation_is_judged_once(tmp_path: Path) -> None:
    # The second event comes without a validation of its own: nothing new to say.
    guard = AccuracyGuard("score", max_drop=0.05)
    _, events, _ = fit(
        [0.9, 0.5], guard, 4, tmp_path, schedule=Rounds(start=2, every=1, count=2), check_val_every_n_epoch=2
    )
    assert events.epochs == [2, 3]
    assert values(guard) == pytest.approx([0.9, 0.5])  # before the first event, and at the end


def test_a_newer_validation_of_the_same_epoch_is_judged(tmp_path: Path) -> None:
    # One epoch of 4 batches, validations after every batch, events before the batches of steps 1, 2 and 3.
    guard = AccuracyGuard("score", max_drop=0.05)
    _, events, _ = fit(
        [0.90, 0.89, 0.88, 0.87],
        guard,
        1,
        tmp_path,
        schedule=Rounds(start=1, every=1, count=3, unit="step"),
        val_check_interval=1,
    )
    assert [step for _, step, _ in events.at] == [1, 2, 3]
    assert values(guard) == pytest.approx([0.90, 0.89, 0.88, 0.87])
    assert {v.epoch for v in guard.verdicts} == {0}


def test_a_drop_in_the_middle_of_an_epoch_is_seen(tmp_path: Path) -> None:
    guard = AccuracyGuard("score", max_drop=0.05, on_drop="pause")
    _, events, _ = fit(
        [0.90, 0.70, 0.90, 0.70, 0.90, 0.90, 0.90, 0.90],
        guard,
        2,
        tmp_path,
        schedule=Rounds(start=1, every=1, count=3, unit="step"),
        val_check_interval=1,
    )
    # Steps 1: baseline. 2: held at 0.70. 3: recovered, one step late. 4: due again, held at 0.70. 5: recovered.
    assert [step for _, step, _ in events.at] == [1, 3, 5]
    assert [v.kept for v in guard.verdicts] == [True, False, True, False, True, True]


# --- stop -----------------------------------------------------------------------------------------------------------


def test_stop_ends_the_training_before_the_next_event(tmp_path: Path) -> None:
    script = [0.5, 0.90, 0.5, 0.84]
    guard = AccuracyGuard("score", max_drop=0.05, on_drop="stop")
    module, events, trainer = fit(script, guard, 20, tmp_path)
    assert events.epochs == [2]
    assert module.validations == 4
    assert module.history[-1] == f"val {WIDTH - 1}"  # nothing is trained, pruned or validated after the judged one
    assert module.history.count(f"train {WIDTH - 1}") == 2 * BATCHES
    assert trainer.global_step == 4 * BATCHES
    assert [v.kept for v in guard.verdicts] == [True, False]


def test_stop_leaves_the_network_as_it_was_judged(tmp_path: Path) -> None:
    weights: list[torch.Tensor] = []

    class Snapshot(Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: Scripted) -> None:
            weights.append(pl_module.net[0].weight.detach().clone())

    module, _, _ = fit([0.9, 0.9, 0.9, 0.1], AccuracyGuard("score", 0.05), 20, tmp_path, callbacks=(Snapshot(),))
    assert torch.equal(module.net[0].weight, weights[-1])


@pytest.mark.parametrize("position", [0, 1], ids=["first batch of an epoch", "inside an epoch"])
def test_stop_in_a_step_schedule_trains_no_further_batch(tmp_path: Path, position: int) -> None:
    start = BATCHES - 1 if position == 0 else BATCHES
    guard = AccuracyGuard("score", max_drop=0.05, on_drop="stop")
    module, events, trainer = fit(
        [0.9] * start + [0.1],
        guard,
        20,
        tmp_path,
        schedule=Rounds(start=start, every=1, count=3, unit="step"),
        val_check_interval=1,
    )
    assert [step for _, step, _ in events.at] == [start]
    assert module.history[-2:] == [f"train {WIDTH - 1}", f"val {WIDTH - 1}"]
    assert trainer.global_step == start + 1
    assert [v.kept for v in guard.verdicts] == [True, False]


def test_no_event_after_a_stop_that_has_to_wait_for_min_epochs(tmp_path: Path) -> None:
    guard = AccuracyGuard("score", max_drop=0.05, on_drop="stop")
    script = [0.9, 0.9, 0.5, 0.5, 0.9]  # recovers, but it was said that the training stops
    _, events, trainer = fit(script, guard, 20, tmp_path, min_epochs=10)
    assert events.epochs == [2]
    assert trainer.current_epoch == 10


def test_a_stop_that_has_to_wait_survives_a_resume(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    script = [0.9, 0.9, 0.5, 0.5, 0.9]
    fit(script, AccuracyGuard("score", max_drop=0.05), 20, tmp_path, callbacks=(save,), min_epochs=10)
    for epoch in (5, 7, 9):
        path = str(tmp_path / f"epoch={epoch}.ckpt")
        guard = AccuracyGuard("score", max_drop=0.05)
        _, events, trainer = fit([0.9], guard, 20, tmp_path, ckpt_path=path, min_epochs=10)
        assert events.epochs == []
        assert trainer.current_epoch == 10


@pytest.mark.parametrize("cure", [None, "min_epochs", "max_drop", "no guard"])
def test_resuming_an_ended_training_warns(tmp_path: Path, cure: str | None) -> None:
    script = [0.9, 0.9, 0.9, 0.5]
    _, _, trainer = fit(script, AccuracyGuard("score", max_drop=0.05), 20, tmp_path)
    path = str(tmp_path / "end.ckpt")
    trainer.save_checkpoint(path)
    module, events = Scripted([0.9]), Events()
    guards = [] if cure == "no guard" else [AccuracyGuard("score", max_drop=0.9 if cure == "max_drop" else 0.05)]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=20,
        min_epochs=7 if cure == "min_epochs" else None,
        callbacks=[pruning(), *guards, events],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, loader(), loader(), ckpt_path=path)
    said = [str(w.message) for w in caught if str(w.message).startswith("AccuracyGuard")]
    assert said == [
        "AccuracyGuard has ended this training: score 0.5000 against 0.9000 (baseline): dropped by more than 0.05. "
        "Nothing more is pruned, regardless of max_drop, and training stops at once unless Trainer(min_epochs=...) "
        "prevents it. To continue training, raise min_epochs; to continue pruning, resume without this guard."
    ] * (cure != "no guard")
    assert events.epochs == ([5, 7] if cure == "no guard" else [])
    assert trainer.current_epoch == {None: 5, "max_drop": 5, "min_epochs": 7, "no guard": 20}[cure]
    trained = [entry for entry in module.history if entry.startswith("train")]
    assert len(trained) == BATCHES * (trainer.current_epoch - 5)  # epoch 4, at whose start it was ended, is over


def test_a_drop_within_bounds_does_not_stop(tmp_path: Path) -> None:
    guard = AccuracyGuard("score", max_drop=0.1)
    _, events, _ = fit([1.0, 1.0, 0.9], guard, 8, tmp_path)  # 1.0 - 0.9 > 0.1 in floating point
    assert events.epochs == [2, 4, 6]
    assert all(v.kept for v in guard.verdicts)


def test_a_drop_after_the_last_event_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guard = AccuracyGuard("score", max_drop=0.05)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit([0.9] * 7 + [0.7], guard, 8, tmp_path)
    assert [v.kept for v in guard.verdicts] == [True, True, True, False]
    assert guard.verdicts[-1].short == "dropped (-0.2000)"
    assert (
        "AccuracyGuard: score 0.7000 against 0.9000 (baseline): dropped by more than 0.05, the training has ended"
        in caplog.messages
    )


# --- pause ----------------------------------------------------------------------------------------------------------


def test_pause_holds_the_event_and_the_schedule_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    #         epoch 0    1    2    3    4    5    6    7    8    9    10
    script = [0.9, 0.9, 0.9, 0.5, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    guard = AccuracyGuard("score", max_drop=0.05, on_drop="pause")
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        module, events, _ = fit(script, guard, 11, tmp_path)
    # The second event was due at 4; held at 4 and 5, done at 6; the third follows `every` = 2 epochs later.
    assert events.epochs == [2, 6, 8]
    assert [width for _, _, width in events.at] == [WIDTH - 1, WIDTH - 2, WIDTH - 3]  # none skipped, none merged
    assert [v.epoch for v in guard.verdicts] == [1, 3, 4, 5, 7, 10]
    assert [v.kept for v in guard.verdicts] == [True, False, False, True, True, True]
    assert module.history.count(f"train {WIDTH - 1}") == 4 * BATCHES
    said = [m for m in caplog.messages if m.startswith("AccuracyGuard")]
    assert said[:2] == [
        "AccuracyGuard: score 0.9000 is the baseline",
        "AccuracyGuard: score 0.5000 against 0.9000 (baseline): dropped by more than 0.05, pruning pauses",
    ]
    assert len(said) == 6  # one for every verdict, however often the event is tried


@pytest.mark.parametrize(("interval", "tries"), [(None, 5), (2, 10)], ids=["once an epoch", "twice an epoch"])
def test_a_held_event_is_tried_again_after_a_validation(tmp_path: Path, interval: int | None, tries: int) -> None:
    class Tries(Callback):
        count = 0

        def on_before_prune(self, *_: Any) -> None:
            self.count += 1

    counter, guard = Tries(), AccuracyGuard("score", 0.05, on_drop="pause")
    # due at epoch 1; held to the end of epoch 5
    fit([NAN], guard, 6, tmp_path, Rounds(start=1, every=1, count=3), (counter,), val_check_interval=interval)
    assert counter.count == tries


def test_pause_twice(tmp_path: Path) -> None:
    script = [0.9, 0.9, 0.5, 0.5, 0.9, 0.5, 0.5, 0.9, 0.9]
    guard = AccuracyGuard("score", max_drop=0.05, on_drop="pause")
    # due 2: done 2; due 4: held, done 5 (one late); due 7: held, done 8
    _, events, _ = fit(script, guard, 9, tmp_path)
    assert events.epochs == [2, 5, 8]


def test_pause_to_the_end_prunes_no_further(tmp_path: Path) -> None:
    guard = AccuracyGuard("score", max_drop=0.05, on_drop="pause")
    module, events, trainer = fit([0.9, 0.9, 0.5], guard, 9, tmp_path)
    assert events.epochs == [2]
    assert trainer.current_epoch == 9
    assert module.width == WIDTH - 1


# --- what it compares to --------------------------------------------------------------------------------------------

TABLE = {
    # compared_to, mode: the verdict on 0.90, 0.93, 0.89, 0.86, 0.83 with max_drop 0.035, judged one after the other
    ("baseline", "max"): ([None, 0.90, 0.90, 0.90, 0.90], [True, True, True, False, False]),
    ("best", "max"): ([None, 0.90, 0.93, 0.93, 0.93], [True, True, False, False, False]),
    ("previous", "max"): ([None, 0.90, 0.93, 0.93, 0.93], [True, True, False, False, False]),
    # ... and on the same values where lower is better
    ("baseline", "min"): ([None, 0.90, 0.90, 0.90, 0.90], [True, True, True, True, True]),
    ("best", "min"): ([None, 0.90, 0.90, 0.89, 0.86], [True, True, True, True, True]),
    ("previous", "min"): ([None, 0.90, 0.93, 0.89, 0.86], [True, True, True, True, True]),
}
SLOW_DECLINE = {
    # 0.90, 0.88, 0.86, 0.84, 0.82 with max_drop 0.035: small steps fool only 'previous'
    "baseline": [True, True, False, False, False],
    "best": [True, True, False, False, False],
    "previous": [True, True, True, True, True],
}


def judge(guard: AccuracyGuard, script: list[float], root: Path) -> None:
    """An event before every epoch, so that every validation is judged."""
    fit(script, guard, len(script), root, schedule=Rounds(start=1, every=1, count=9))


@pytest.mark.parametrize(("compared_to", "mode"), list(TABLE))
def test_reference_table(tmp_path: Path, compared_to: Any, mode: Any) -> None:
    references, kept = TABLE[compared_to, mode]
    guard = AccuracyGuard("score", 0.035, mode=mode, compared_to=compared_to, on_drop="pause")
    judge(guard, [0.90, 0.93, 0.89, 0.86, 0.83], tmp_path)
    assert [v.reference for v in guard.verdicts] == [r if r is None else pytest.approx(r) for r in references]
    assert [v.kept for v in guard.verdicts] == kept


@pytest.mark.parametrize("compared_to", list(SLOW_DECLINE))
def test_a_slow_decline(tmp_path: Path, compared_to: Any) -> None:
    guard = AccuracyGuard("score", 0.035, compared_to=compared_to, on_drop="pause")
    judge(guard, [0.90, 0.88, 0.86, 0.84, 0.82], tmp_path)
    assert [v.kept for v in guard.verdicts] == SLOW_DECLINE[compared_to]


def test_previous_is_the_last_one_that_was_kept(tmp_path: Path) -> None:
    guard = AccuracyGuard("score", 0.05, compared_to="previous", on_drop="pause")
    judge(guard, [0.90, 0.50, 0.50, 0.87, 0.83], tmp_path)  # 0.50 equals the judgement before it, and is still a drop
    assert [v.kept for v in guard.verdicts] == [True, False, False, True, True]
    assert guard.verdicts[-1].reference == pytest.approx(0.87)


def test_mode_min_stops_when_the_metric_rises(tmp_path: Path) -> None:
    guard = AccuracyGuard("score", 0.05, mode="min")
    _, events, _ = fit([0.30, 0.30, 0.20, 0.20, 0.36], guard, 20, tmp_path)
    assert events.epochs == [2, 4]
    assert [v.kept for v in guard.verdicts] == [True, True, False]
    assert guard.verdicts[-1].short == "dropped (+0.0600)"


def test_mode_min_accepts_improvement(tmp_path: Path) -> None:
    guard = AccuracyGuard("score", 0.0, mode="min")
    _, events, _ = fit([0.9, 0.9, 0.5, 0.5, 0.1], guard, 8, tmp_path)
    assert events.epochs == [2, 4, 6]


@pytest.mark.parametrize("bad", [NAN, -math.inf])
def test_a_metric_that_is_no_number_is_dropped(tmp_path: Path, bad: float) -> None:
    guard = AccuracyGuard("score", 0.05, on_drop="pause")
    _, events, _ = fit([0.9, 0.9, 0.9, bad, 0.9], guard, 8, tmp_path)
    assert events.epochs == [2, 5, 7]
    assert [v.kept for v in guard.verdicts] == [True, False, True, True, True]


def test_a_baseline_that_is_no_number_is_dropped(tmp_path: Path) -> None:
    guard = AccuracyGuard("score", 0.05, on_drop="pause")
    _, events, _ = fit([0.9, NAN, 0.8, 0.8], guard, 6, tmp_path)
    assert events.epochs == [3, 5]
    first, second, *_ = guard.verdicts
    assert (first.kept, first.says, first.short) == (False, "score nan is not a number: dropped", "dropped (nan)")
    assert (second.kept, second.reference, second.short) == (True, None, "baseline")


# --- together with other parts --------------------------------------------------------------------------------------


def test_best_checkpoint_has_the_final_size(tmp_path: Path) -> None:
    # The dense network scores best; the best of the final size is the one after epoch 4.
    script = [0.99, 0.98, 0.95, 0.94, 0.96, 0.90]
    best = ModelCheckpoint(tmp_path / "ck", monitor="score", mode="max", filename="{epoch}")
    _, events, trainer = fit(
        script,
        AccuracyGuard("score", 0.05, on_drop="stop"),
        20,
        tmp_path,
        schedule=Rounds(start=2, every=2, count=3),
        callbacks=(best,),
    )
    assert events.epochs == [2, 4]  # the third is refused: 0.90 < 0.99 - 0.05
    assert Path(best.best_model_path).stem == "epoch=4"
    (result,) = trainer.test(ckpt_path="best", dataloaders=loader(), verbose=False)
    assert result["width"] == WIDTH - 2
    assert load_pruned(Scripted(), best.best_model_path).width == WIDTH - 2


def test_early_stopping_may_end_the_training_as_well(tmp_path: Path) -> None:
    guard = AccuracyGuard("score", 0.05)
    early = EarlyStopping("score", mode="max", patience=1)
    _, events, trainer = fit([0.9], guard, 20, tmp_path, callbacks=(early,))
    assert (events.epochs, trainer.current_epoch) == ([], 2)
    assert [v.kept for v in guard.verdicts] == [True]


def test_validating_apart_from_training_is_not_judged(tmp_path: Path) -> None:
    guard = AccuracyGuard("score", 0.05)
    module, _, trainer = fit([0.9], guard, 3, tmp_path)
    before = guard.state_dict()
    module.script = [0.1]
    trainer.validate(module, loader(), verbose=False)
    assert guard.state_dict() == before


def test_verdicts_are_resumed(tmp_path: Path) -> None:
    script = [0.9, 0.9, 0.9, 0.5, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    whole = AccuracyGuard("score", 0.05, on_drop="pause")
    _, all_events, _ = fit(script, whole, 11, tmp_path)

    last = ModelCheckpoint(tmp_path / "ck", save_last=True)
    fit(script, AccuracyGuard("score", 0.05, on_drop="pause"), 5, tmp_path, callbacks=(last,))  # ends while held
    resumed = AccuracyGuard("score", 0.05, on_drop="pause")
    module, events, _ = fit(script[5:], resumed, 11, tmp_path, ckpt_path=str(tmp_path / "ck" / "last.ckpt"))
    assert events.at == all_events.at[1:]
    assert resumed.verdicts == whole.verdicts
    assert module.width == WIDTH - 3


def test_state_is_plain(tmp_path: Path) -> None:
    guard = AccuracyGuard("score", 0.05)
    fit([0.9], guard, 3, tmp_path)
    torch.save(guard.state_dict(), tmp_path / "state.pt")
    again = AccuracyGuard("score", 0.05)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.state_dict() == guard.state_dict()


def test_two_guards_have_separate_states() -> None:
    keys = {AccuracyGuard(name, 0.1, compared_to=to).state_key for name in ("a", "b") for to in ("best", "previous")}
    assert len(keys) == 4


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_drop", [-0.1, NAN, math.inf, True, "0.1", None])
def test_max_drop_is_checked(max_drop: Any) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        AccuracyGuard("score", max_drop)
    assert str(caught.value) == (
        f"AccuracyGuard max_drop={max_drop!r} must be a finite number of at least 0, in the unit of the metric"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "maximum"}, "AccuracyGuard mode='maximum' is not known; use 'max' or 'min'"),
        (
            {"compared_to": "dense"},
            "AccuracyGuard compared_to='dense' is not known; use 'previous', 'baseline' or 'best'",
        ),
        ({"on_drop": "undo"}, "AccuracyGuard on_drop='undo' is not known; use 'stop', 'pause' or 'rollback'"),
    ],
)
def test_choices_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        AccuracyGuard("score", 0.1, **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("retry", [-1, True, 1.0, "1", None])
def test_retry_is_checked(retry: Any) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        AccuracyGuard("score", 0.1, on_drop="rollback", retry=retry)
    assert str(caught.value) == f"AccuracyGuard retry={retry!r} must be an integer of at least 0"


@pytest.mark.parametrize("on_drop", ["stop", "pause"])
def test_retry_needs_a_rollback(on_drop: Any) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        AccuracyGuard("score", 0.1, on_drop=on_drop, retry=2)
    assert str(caught.value) == (
        f"AccuracyGuard retry=2 tries smaller steps after a rollback, but on_drop={on_drop!r}; use on_drop='rollback', "
        "or leave retry at 0"
    )


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_an_unknown_metric_is_found_as_soon_as_possible(tmp_path: Path, sanity_steps: int) -> None:
    module = Scripted([0.9])
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[pruning(), AccuracyGuard("val_akk", 0.1)],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=sanity_steps,
    )
    with pytest.raises(
        MisconfigurationException, match="AccuracyGuard monitor='val_akk' is not logged by validation; it logs score"
    ):
        trainer.fit(module, loader(), loader())
    assert trainer.global_step == (0 if sanity_steps else BATCHES)


@pytest.mark.parametrize("case", ["no loader", "limit 0"])
def test_without_validation_it_is_refused(tmp_path: Path, case: str) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[pruning(), AccuracyGuard("score", 0.1)],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0 if case == "limit 0" else None,
    )
    with pytest.raises(MisconfigurationException, match="monitors 'score', but no validation runs in this training"):
        trainer.fit(Scripted([0.9]), loader(), loader() if case == "limit 0" else None)
    assert trainer.global_step == 0


def test_a_guard_without_a_pruner_is_refused(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[AccuracyGuard("score", 0.1)],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with pytest.raises(MisconfigurationException) as caught:
        trainer.fit(Scripted([0.9]), loader(), loader())
    assert str(caught.value) == "AccuracyGuard has no effect without pruning; add IterativePruning(...)"
