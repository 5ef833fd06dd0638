"""The examples of the README, as printed. As a program: the library's alone, where nothing else is installed."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

README_PATH = pathlib.Path(__file__).parents[2] / "README.md"
README = README_PATH.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def batches(seed):
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(4, 5)), "y": rng.normal(size=(4, 3))} for _ in range(2)]


def loss(params, batch):
    return jnp.square(batch["x"] @ params["w"] + params["b"] - batch["y"]).mean()


def test_the_library_example_runs_as_printed():
    example = EXAMPLES[0]
    params = {"w": jnp.ones((5, 3)), "b": jnp.zeros(3)}
    names = {"loss": loss, "params": params, "forget_batches": batches(0), "retain_batches": batches(1)}
    exec(example, names)
    tx, mask = names["tx"], names["mask"]
    updates, _ = tx.update(jax.grad(loss)(params, batches(0)[0]), tx.init(params), params)
    after = optax.apply_updates(params, updates)
    moved = jax.tree.map(lambda p, q: np.asarray(p != q), params, after)
    assert 0 < sum(x.sum() for x in jax.tree.leaves(moved)) < 18
    jax.tree.map(np.testing.assert_array_equal, moved, mask)


def test_the_projected_loop_runs_as_printed():
    before = {"w": jnp.ones((5, 3)), "b": jnp.zeros(3)}
    names = {"loss": loss, "params": before, "forget_batches": batches(0), "retain_batches": batches(1)}
    exec(EXAMPLES[0], names)
    exec(EXAMPLES[1], names)
    moved = np.asarray(names["params"]["w"] - before["w"])
    factor = names["factors"]["w"]
    kept = np.asarray(factor.basis)[:, np.asarray(factor.strength) > 0]
    assert 0 < kept.shape[1] < 5 and np.abs(moved).max() > 1e-3
    np.testing.assert_allclose(kept.T @ moved, 0, atol=1e-6)
    np.testing.assert_array_equal(names["params"]["b"], before["b"])


def test_the_program_of_the_page_prints_what_it_says(capsys):
    page = (README_PATH.parent / "docs" / "own-project.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(program, "own-project.md", "exec"), {"__name__": "page"})
    said = capsys.readouterr().out.splitlines()
    told = re.search(r"It prints\n\n```\n(.*?)```", page, re.DOTALL)[1].splitlines()
    assert said[:-1] == told[:-1] and float(said[-1].split(": ")[1]) < 1e-5  # the last digit is the machine's


def test_a_study_is_three_lines(monkeypatch):
    from mmu_jax.study import study

    ran = []
    monkeypatch.setattr(study.Study, "run", lambda self: ran.extend(self.stages.table))
    exec(EXAMPLES[2], {})
    assert ran[:3] == ["data", "base", "vanilla"] and ran[-1] == "report"


def test_every_page_that_is_named_is_there():
    root = pathlib.Path(__file__).parents[2]
    named = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert len(named) > 10 and [path for path in named if not (root / path).exists()] == []


if __name__ == "__main__":
    test_the_library_example_runs_as_printed()
    test_the_projected_loop_runs_as_printed()
