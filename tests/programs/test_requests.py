"""What an engineer does who holds a model, the factors that were saved with it, and a request."""

import json

from runs import SMALL, ends_in_one_line, results, run
from xla import QUICK


def test_a_request_is_honoured_without_a_row_of_the_others(whole, tmp_path):
    given = [
        f"--config.vanilla.path={whole[0] / 'vanilla'}",
        f"--config.factors.path={whole[0] / 'factors.safetensors'}",
    ]
    given += [
        "--config.unlearn.methods=('projected','projected_retain')",
        "--config.unlearn.replay=0.0",
        "--config.data.group=3",
    ]
    given += [
        "--config.unlearn.stop.every=1",
        "--config.unlearn.epochs=2.0",
        "--config.attack.names=()",
        "--config.gold=False",
    ]
    small = [option for option in SMALL if not option.startswith("--config.unlearn.")]
    given += ["--config.unlearn.rows=64", "--config.unlearn.learning_rate.projected=1e-4"]
    given += ["--config.unlearn.learning_rate.projected_retain=1e-4"]
    done = run(tmp_path / "w", *small, *given, flags=QUICK)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        "the factors keep the faces of 10 of the 10 people to forget, among 90" in done.stdout
    )  # measured for group 0
    stages = {p.relative_to(tmp_path / "w" / "stages").as_posix() for p in (tmp_path / "w" / "stages").rglob("*.json")}
    assert {"unlearn/projected.json", "report.json"} <= stages and not {"factors.json", "base.json"} & stages
    found = json.loads((tmp_path / "w" / "results" / "projected.json").read_text())
    assert 0 < found["stopped"]["level"] < 1 and found["stopped"]["last"] is not None
    assert found["stopped"]["reached"] == ("level not reached" not in found["flags"])
    curves = json.loads((tmp_path / "w" / "training" / "unlearn" / "projected.json").read_text())
    assert set(curves) == {"forget/ascent", "watched/probability"}
    first, second = (results(tmp_path / "w")[f"{name}.json"] for name in ("projected", "projected_retain"))
    assert json.loads(first)["results"] == json.loads(second)["results"]  # nothing is left of its step on the others
    other = run(tmp_path / "o", *small, *given, f"--config.vanilla.path={whole[0] / 'gold'}", flags=QUICK)
    ends_in_one_line(other, "expected factors of this model", "config.factors.path")
