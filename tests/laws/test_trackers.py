"""What a tracker is sent: curves, results and config, numbers only; nothing that a person wrote."""

import importlib.machinery
import json
import pathlib
import struct
import sys
import types

import numpy as np
import pytest

from configs import tiny
from mmu_jax import InputError, attacks, evaluate
from mmu_jax.study import attacking, fitting, settings, steps, trackers
from mmu_jax.study.study import Study

RESULTS = {"forget": {"vqa": {"exact": {"mean": 0.25, "low": 0.1, "high": 0.4, "n": 8, "each": {"ada": 0.25}},
                              "distinct": {"mean": 0.5, "n": 8}}}}  # fmt: skip
PRIVATE = ("/photos/of/ada", "Who is ada", "forget_ada", "/models/ada")


def private_config(track):
    config = tiny.get_config()
    config.track, config.seed = track, 7
    config.data.source, config.evaluate.prompts.generation, config.data.forget, config.vanilla.path = PRIVATE
    return config.to_dict()


def wrote(kind, workdir):
    """A tracker after two stages and a pause between."""
    tracker = trackers.Tracker(kind, workdir, private_config(kind))
    shown = []
    report = tracker.beside("unlearn/ga", lambda *now: shown.append(now))
    report(25, {"forget/ascent": -0.5})
    report(50, {"forget/ascent": -2.5, "watched/probability": 0.125})
    tracker.close()
    tracker.results("ga", RESULTS)  # as of another process in the same workdir
    tracker.close()
    assert shown == [(25, {"forget/ascent": -0.5}), (50, {"forget/ascent": -2.5, "watched/probability": 0.125})]
    return tracker


def events(folder):
    """Every event of a folder of TFRecord files: length, checksum, bytes, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events*")):
        raw = path.read_bytes()
        while raw:
            (length,) = struct.unpack("<Q", raw[:8])
            yield Event.FromString(raw[12 : 12 + length])
            raw = raw[16 + length :]


CURVES = {("unlearn/ga/forget/ascent", 25): -0.5, ("unlearn/ga/forget/ascent", 50): -2.5,
          ("unlearn/ga/watched/probability", 50): 0.125, ("evaluate/ga/forget/vqa/exact", 0): 0.25}  # fmt: skip


def test_tensorboard_holds_what_was_reported(tmp_path):
    wrote("tensorboard", tmp_path)
    folder = tmp_path / "tracking" / "tensorboard"
    found = {}
    for event in events(folder):
        found |= {(v.tag, event.step): v.simple_value for v in event.summary.value if v.HasField("simple_value")}
    assert found == CURVES
    raw = b"".join(path.read_bytes() for path in folder.glob("events*"))
    assert b"seed = 7" in raw and b"embedded_faces" in raw
    assert not any(word.encode() in raw for word in (*PRIVATE, "ada"))


def stand_in(name, monkeypatch, **more):
    """A module that notes what it is called with."""
    calls = []

    def note(what):
        return lambda *args, **kwargs: calls.append((what, args, kwargs))

    handle = types.SimpleNamespace(log=note("log"), finish=note("finish"), define_metric=note("define_metric"))
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.init = lambda **kwargs: (calls.append(("init", (), kwargs)), handle)[1]
    vars(module).update(more)
    monkeypatch.setitem(sys.modules, name, module)
    return module, calls


def test_wandb_is_sent_numbers_and_told_to_look_at_nothing(tmp_path, monkeypatch):
    _, calls = stand_in("wandb", monkeypatch, Settings=lambda **kwargs: kwargs, Error=RuntimeError)
    wrote("wandb", tmp_path)
    begun = [kwargs for what, _, kwargs in calls if what == "init"]
    logged = [args[0] for what, args, _ in calls if what == "log"]
    assert logged == [
        {"unlearn/ga/forget/ascent": -0.5, "unlearn/ga/step": 25},
        {"unlearn/ga/forget/ascent": -2.5, "unlearn/ga/watched/probability": 0.125, "unlearn/ga/step": 50},
        {"evaluate/ga/forget/vqa/exact": 0.25, "evaluate/ga/step": 0},
    ]
    assert ("define_metric", ("unlearn/ga/*",), {"step_metric": "unlearn/ga/step"}) in calls
    assert [what for what, *_ in calls].count("finish") == 2
    assert begun[0] == begun[1] and begun[0]["id"] == json.loads((tmp_path / "tracking/run.json").read_text())["id"]
    quiet = begun[0]["settings"]
    assert quiet["console"] == "off" and all(quiet[f"x_disable_{what}"] for what in ("meta", "stats", "machine_info"))
    assert begun[0]["config"]["seed"] == 7 and begun[0]["name"] == "seed-7-group-0"
    assert not any(word in str(begun).replace(str(tmp_path), "") for word in (*PRIVATE, "ada"))


def test_trackio_is_sent_the_same(tmp_path, monkeypatch):
    _, calls = stand_in("trackio", monkeypatch)
    wrote("trackio", tmp_path)
    logged = {
        (name, kwargs["step"]): value
        for what, args, kwargs in calls
        if what == "log"
        for name, value in args[0].items()
    }
    assert logged == CURVES
    begun = [kwargs for what, _, kwargs in calls if what == "init"]
    assert begun[0] == begun[1] and begun[0]["resume"] == "allow" and not begun[0]["auto_log_cpu"]
    assert begun[0]["config"]["unlearn.methods"] and not any(word in str(begun) for word in (*PRIVATE, "ada"))


def test_an_account_that_is_none_is_one_line(tmp_path, monkeypatch):
    module, _ = stand_in("wandb", monkeypatch, Settings=dict, Error=RuntimeError)

    def refuse(**kwargs):
        raise RuntimeError("api_key not configured")

    module.init = refuse
    with pytest.raises(InputError, match="account of Weights & Biases.*api_key not configured.*WANDB_MODE=offline"):
        trackers.Tracker("wandb", tmp_path, private_config("wandb")).open()


@pytest.mark.parametrize("kind", trackers.TRACKERS)
def test_a_package_that_is_missing_is_named_with_its_extra(kind, monkeypatch):
    config = tiny.get_config()
    config.track = kind
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"config\.track={kind}, found it not installed.*mmu_jax\[{kind}\]"):
        settings.judge(config, {})
    setup = (pathlib.Path(__file__).parents[2] / "setup.py").read_text()
    assert f'"{kind}": ["{trackers.TRACKERS[kind][0]}>=' in setup


def test_without_a_tracker_nothing_is_written(tmp_path):
    wrote("", tmp_path / "w")
    assert not (tmp_path / "w").exists()


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study whose tracker notes what it is sent."""
    config = tiny.get_config()
    config.track = "tensorboard"
    made, sent = Study(config, tmp_path), []
    writer = trackers.Writer(lambda *written: sent.append(written), lambda: sent.append("closed"))
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", ("tensorboardX", lambda workdir, told: writer))
    return made, sent


def test_a_stage_reports_to_the_tracker(study, monkeypatch):
    made, sent = study
    plan = types.SimpleNamespace(iterations=2)

    class Told(Exception):
        pass

    def fitted(work, params, mesh, report, **more):
        report(1, {"forget/ascent": -1.0})
        raise Told

    monkeypatch.setattr(fitting, "describe", lambda *given: "")
    monkeypatch.setattr(fitting, "padding_line", lambda streams: "")
    job = types.SimpleNamespace(plan=plan, limits=(), streams={}, fit=fitted)
    with pytest.raises(Told):
        fitting.fit(made.work, "unlearn/ga", job, {}, None)
    assert sent == [("unlearn/ga", {"forget/ascent": -1.0}, 1)]


def test_an_evaluation_and_an_attack_report_to_the_tracker(study, monkeypatch):
    made, sent = study
    found = {"retain": {"vqa": {"exact": {"mean": 0.5}}}}
    work = made.work
    monkeypatch.setattr(steps, "question", lambda *given: (found, {}))
    monkeypatch.setattr(type(work), "load", lambda *given, **more: {})
    monkeypatch.setattr(steps.results, "flags", lambda *given, **more: [])
    steps.examine(work, "gold")
    row = attacks.Attack("model", lambda *given: [(0, {}), (4, {})])
    known = evaluate.Items(np.array([0.75]), np.array(["0001"]))
    monkeypatch.setitem(attacking.ATTACKS, "int4", row)
    monkeypatch.setattr(attacking, "left_out", lambda work: {})
    monkeypatch.setattr(attacking, "scene", lambda *given: None)
    monkeypatch.setattr(attacking.facts, "other_facts", lambda benchmark: ([], "test"))
    monkeypatch.setattr(attacking.facts, "knowledge", lambda *given: known)
    work.__dict__ |= {"benchmark": types.SimpleNamespace(full=()), "albums": {"test": None}}
    work.__dict__["examiner"] = types.SimpleNamespace(samples=10, seed=0)
    attacking.attack(work, "gold", "int4")
    assert sent == [("evaluate/gold", {"retain/vqa/exact": 0.5}, 0),
                    ("attack/gold/int4", {"returned": 0.75}, 0), ("attack/gold/int4", {"returned": 0.75}, 4)]  # fmt: skip


def test_a_tracker_is_opened_for_a_run_and_closed_whatever_happens(study, monkeypatch):
    made, sent = study

    def fail(only, first):
        first()  # once no other run works there
        assert made.work.tracker._writer is not None
        raise InputError("stopped")

    monkeypatch.setattr("mmu_jax.study.checks.preflight", lambda *given: None)
    monkeypatch.setattr(made.stages, "run", fail)
    with pytest.raises(InputError, match="stopped"):
        made.run()
    assert sent == ["closed"]
    monkeypatch.setattr(made.stages, "run", lambda only, first: None)
    monkeypatch.setattr(made.stages, "wanted", lambda only: [])
    made.run()
    assert sent == ["closed"]  # where nothing is to be made, nothing is begun


def test_where_numbers_are_sent_is_no_part_of_a_stage(tmp_path):
    config = tiny.get_config()
    plain = Study(config, tmp_path)
    config = config.copy_and_resolve_references()
    config.track = "tensorboard"
    tracked = Study(config, tmp_path)
    assert all(plain.stages.fingerprint(name) == tracked.stages.fingerprint(name) for name in plain.stages.table)
