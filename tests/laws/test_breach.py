"""All attacks on several groups: what was measured person by person becomes one table, and a run goes on where it was stopped."""

import json
import types

import numpy as np
import pytest

from mmu_jax import InputError, NotFiniteError, metrics
from mmu_jax.report import results
from mmu_jax.study import attacking, stages, steps


def value(after, before=0.2, measures="knowledge"):
    """A file in which the people of a group have these values."""
    each = {"before": {f"{i}": before for i in range(len(after))}, "after": {f"{i}": p for i, p in enumerate(after)}}
    ends = {end: {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 4 * len(after), "people": len(after)} for end in each}
    return ends | {"each": each, "measures": measures, "split": "test", "trains": False}


def test_groups_are_pooled_by_the_means_of_their_people():
    from experiments import breach

    groups = {2: {"paraphrase": {"gold": value([0.1, 0.3]), "ga": value([0.8, 0.9])}},
              3: {"paraphrase": {"gold": value([0.2, 0.4])}}}  # fmt: skip
    found = breach.pooled(groups, ["vanilla", "gold", "ga"], ["paraphrase", "int4"])
    gold = found["paraphrase"]["gold"]
    want = metrics.nested({(0, 2): np.array([0.1, 0.3]), (0, 3): np.array([0.2, 0.4])})
    assert gold["after"] == {k: want[k] for k in ("mean", "low", "high")} | {"n": 16, "people": 4}
    assert gold["after"]["mean"] == pytest.approx(0.25) and gold["before"]["mean"] == pytest.approx(0.2)
    assert gold["groups"] == 2 and found["paraphrase"]["ga"]["groups"] == 1 and set(found) == {"paraphrase"}
    del groups[2]["paraphrase"]["ga"]["each"]
    with pytest.raises(InputError, match="numbers by person of paraphrase on ga, found none"):
        breach.pooled(groups, ["ga"], ["paraphrase"])


def test_shares_that_are_all_alike_have_an_interval_all_the_same_and_variants_one_over_groups():
    from experiments import breach

    scored = {"loss": {"mean": 0.6, "low": 0.5, "high": 0.7, "n": 8, "tpr": 0.1}}
    groups = {
        group: {"probe_vision": {"ga": value([1.0, 1.0], measures="identity")}}
        | {"membership": {"ga": value([0.5, 0.7], measures="auc") | {"variants": scored}}}
        for group in (2, 3)
    }
    found = breach.pooled(groups, ["ga"], ["probe_vision", "membership"])
    after = found["probe_vision"]["ga"]["after"]
    assert after["mean"] == after["high"] == 1.0 and after["low"] == results.wilson(1.0, 4)[0] < 0.7
    one = found["membership"]["ga"]["variants"]["loss"]
    assert one["mean"] == pytest.approx(0.6) and one["tpr"] == 0.1 and one["n"] == 16 and one["low"] == one["high"]


@pytest.fixture
def work(tmp_path):
    """A workspace of which only places and names are asked."""
    c = types.SimpleNamespace
    config = c(
        attack=c(names=("paraphrase", "membership")), unlearn=c(methods=("npo", "grad_diff")), seed=0, data=c(group=2)
    )
    made = c(config=config, workdir=tmp_path, scores=None)
    made.attacked = lambda model, name: tmp_path / "attacks" / model / f"{name}.json"
    made.folder = lambda model: tmp_path / "unlearned" / model
    made.names = lambda: ["vanilla", "gold", "npo", "grad_diff"]
    return made


def test_no_model_is_made_for_an_attack_that_is_left_out(work, typed, monkeypatch, capsys):
    from experiments import breach

    typed("--config=configs/tiny.py")
    faults = {name: f"attack {name}: nobody is unseen" for name in attacking.names(work)}
    monkeypatch.setattr(attacking, "left_out", lambda work: faults)
    monkeypatch.setattr(steps, "stages", lambda work: pytest.fail("a model is made"))
    assert faults and not breach.breach(work)
    assert "  left out: attack membership: nobody is unseen" in capsys.readouterr().out


def test_what_is_there_is_not_made_again_and_a_run_that_diverges_is_left_out(work, typed, monkeypatch, capsys):
    from experiments import breach

    typed("--config=configs/tiny.py")
    made, asked = [], []

    def making(name, *leaves):
        def make():
            made.append(name)
            work.folder(name).mkdir(parents=True)
            for path in leaves:
                path.touch()
            if name == "grad_diff":
                raise NotFiniteError("expected finite numbers, found NaN")

        return make

    mask = work.workdir / "mask"
    table = [
        stages.Stage("vanilla", {}, (), None),
        stages.Stage("gold", {}, ("vanilla",), making("gold")),
        stages.Stage("saliency/npo", {}, ("vanilla",), making("mask", mask), (mask,)),
        stages.Stage("unlearn/npo", {}, ("vanilla", "saliency/npo"), making("npo")),
        stages.Stage("unlearn/grad_diff", {}, ("vanilla",), making("grad_diff")),
    ]
    monkeypatch.setattr(steps, "stages", lambda work: table)

    def attack(work, model, name):
        asked.append((model, name))
        path = work.attacked(model, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        found = value([0.1, 0.3], measures="auc" if name == "membership" else "knowledge")
        path.write_text(json.dumps(found | {"made": attacking.made(model, name)}))

    monkeypatch.setattr(attacking, "attack", attack)
    monkeypatch.setattr(attacking, "left_out", lambda work: {})
    breach.breach(work)
    assert made == ["gold", "mask", "npo", "grad_diff"], "gold first, which scores of membership refer to"
    assert asked == [(m, n) for m in ("gold", "vanilla", "npo") for n in ("paraphrase", "membership")]
    assert (
        not work.folder("npo").exists() and "grad_diff is left out: expected finite numbers" in capsys.readouterr().out
    )
    work.attacked("npo", "membership").unlink()
    (work.folder("gold") / "config.json").touch()
    work.config.unlearn.methods = ("npo",)
    made.clear(), asked.clear()
    breach.breach(work)
    assert made == ["npo"] and asked == [("npo", "membership")]

    found = breach.attacked.read(work.workdir, ["vanilla", "gold", "npo"], ["paraphrase", "membership"])
    text = breach.tell(work, {2: found, 3: {name: {"gold": by["gold"]} for name, by in found.items()}})
    assert (
        "# Attacks on 2 groups of people to forget, seed 0" in text
        and text == (work.workdir / "attacks.md").read_text()
    )
    assert "| Model | Before any ↓ | paraphrase ↓ |" in text and "| Model | membership (AUC), like gold's |" in text
    assert "| npo | 20 [20, 20] | 20 [10, 30] |" in text and "'npo': 1" in text
    assert json.loads((work.workdir / "attacks.json").read_text())["attacks"]["paraphrase"]["gold"]["groups"] == 2


def test_what_was_made_by_another_row_of_a_table_is_missing(work):
    from experiments import breach

    path = work.attacked("npo", "paraphrase")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(value([0.1]) | {"made": attacking.made("npo", "paraphrase")}))
    assert breach.lacking(work, "npo") == ["membership"]
    path.write_text(path.read_text().replace("npo", "simnpo"))
    assert breach.lacking(work, "npo") == ["paraphrase", "membership"]


def test_what_cannot_be_meant_is_refused(typed, tmp_path):
    from experiments import breach, command

    where = f"--workdir={tmp_path}"
    for words, said in (
        (("--groups=",), "a group at least"),
        (("--groups=two",), "numbers in --groups"),
        (("--config.data.group=3",), "found config.data.group; name groups by --groups"),
    ):
        typed("--config=configs/tiny.py", where, *words)
        with pytest.raises(InputError, match=said):
            breach.run()
    typed("--config=configs/tiny.py", where)
    command.same_config(tmp_path, breach.FREE)
    typed("--config=configs/tiny.py", where, "--config.unlearn.methods=('ga',)", "--config.attack.names=all")
    command.same_config(tmp_path, breach.FREE)
    typed("--config=configs/tiny.py", where, "--config.seed=4")
    with pytest.raises(InputError, match="expected the config that .* holds, found another"):
        command.same_config(tmp_path, breach.FREE)
    typed("--config=configs/tiny.py", where)
    assert breach.study_of(tmp_path).work.config.attack.names == ("all",)
    typed("--config=configs/tiny.py", where, "--config.attack.names=('int4',)")
    assert breach.study_of(tmp_path).work.config.attack.names == ("int4",)
