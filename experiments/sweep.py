"""Chooses the learning rate of every method: one grid for all, on seeds that are not reported.

    python -m experiments.sweep --config=configs/tiny.py --seeds=1

For each seed a vanilla model and the masks are made by ``experiments.run``; each method is then run at each rate, with
the passes, batch and everything else of the config. A rate is judged by its *worst axis*, in [0, 1]: the four-way goal
is only as good as the axis that fails. The axes are forget VQA and forget Test VQA (1 at or below the chance level of
four options, 0 where all are still right), forget QA, retain VQA and retain QA (exact answers). The best mean over
seeds wins, the smaller rate on a tie. What is measured is kept in ``<workdir>/sweep.json``; the same command goes on.
"""

import pathlib
import sys

import numpy as np
from absl import app, flags, logging

from experiments import run
from mmu_jax import InputError, train

SEEDS = flags.DEFINE_list("seeds", ["1"], "Seeds to choose on.")
RATES = flags.DEFINE_list("rates", ["3e-5", "1e-4", "2e-4", "3e-4", "5e-4", "8e-4"], "The grid, for every method.")
METHODS = flags.DEFINE_list("methods", [], "Only these methods; default those of the config.")


def axes(results: dict, chance: float = 0.25) -> dict[str, float]:
    """The five axes, each in [0, 1], up is good."""

    def unknown(split):
        known = max(results[split]["vqa"]["mcq"]["mean"] - chance, 0.0) / (1 - chance)
        return 1.0 - max(known, results[split]["vqa"]["exact"]["mean"])

    return {
        "forget VQA": unknown("forget"),
        "test VQA": unknown("test"),
        "forget QA": results["forget"]["qa"]["exact"]["mean"],
        "retain VQA": results["retain"]["vqa"]["exact"]["mean"],
        "retain QA": results["retain"]["qa"]["exact"]["mean"],
    }


def measure(runner: run.Run, name: str, rate: float) -> dict[str, float]:
    """One method at one rate on one seed."""
    plan, streams, mask = runner.prepared(name, rate)
    state = train.fit(plan, runner.model, runner.vanilla_params, streams, mesh=runner.mesh, mask=mask)
    results, _ = runner.questioned(f"{name} at {rate:g}", state.params)
    return axes(results)


def choose(table: dict[str, dict[str, dict[str, dict[str, float]]]]) -> dict[str, float]:
    """``{method: {rate: {seed: axes}}}`` -> the best rate of every method."""
    best = {}
    for name, rates in table.items():
        worth = {float(rate): np.mean([min(a.values()) for a in seeds.values()]) for rate, seeds in rates.items()}
        best[name] = max(sorted(worth), key=lambda rate: worth[rate])
    return best


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    workdir = pathlib.Path(run.WORKDIR.value or "runs/sweep")
    kept = workdir / "sweep.json"
    table = run.read_json(kept) if kept.exists() else {}
    try:
        for seed in SEEDS.value:
            config = run.CONFIG.value.copy_and_resolve_references()
            with config.unlocked():
                config.seed, config.gold = int(seed), False
            runner = run.Run(config, workdir / f"seed{seed}")
            runner.go(["data", "base", "vanilla", "evaluate/vanilla", "saliency"])
            for name in METHODS.value or config.unlearn.methods:
                for rate in RATES.value:
                    seeds = table.setdefault(name, {}).setdefault(f"{float(rate):g}", {})
                    if seed not in seeds:
                        seeds[seed] = measure(runner, name, float(rate))
                        run.write_json(kept, table)
                        shown = "  ".join(f"{axis} {100 * v:.0f}" for axis, v in seeds[seed].items())
                        print(f"{name} at {float(rate):g}, seed {seed}: {shown}", flush=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for name, rate in choose(table).items():
        print(f"config.unlearn.learning_rate.{name} = {rate:g}")


if __name__ == "__main__":
    app.run(main, flags_parser=run.parse)
