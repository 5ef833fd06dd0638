"""A small regression with weights on its rows."""

import jax.numpy as jnp
import numpy as np

KINDS = {"squared": np.square, "absolute": np.abs, "signed": lambda g: g}


def batches(n=3, rows=8, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"x": rng.normal(size=(rows, 5)).astype(np.float32), "y": rng.normal(size=(rows, 8)).astype(np.float32)}
        for _ in range(n)
    ]


def params(seed=0):
    rng = np.random.default_rng(seed)
    return {"w": jnp.asarray(rng.normal(size=(8, 5)), jnp.float32), "b": jnp.asarray(rng.normal(size=8), jnp.float32)}


def loss(p, batch):
    error = jnp.square(batch["x"] @ p["w"].T + p["b"] - batch["y"]).mean(axis=1)
    weights = batch.get("weights", jnp.ones_like(batch["y"]))[:, 0]
    return (error * weights).sum(), weights.sum()


def by_hand(p, sets, unit, kind):
    """A numpy loop over units: g = 2/8 (pred - y) x."""
    w, b, total, n = np.asarray(p["w"], np.float64), np.asarray(p["b"], np.float64), None, 0
    for batch in sets:
        delta = 2 / 8 * (batch["x"] @ w.T + b - batch["y"])
        rows = [(np.outer(d, x), d) for d, x in zip(delta, batch["x"], strict=True)]
        keep = batch["weights"][:, 0] > 0 if "weights" in batch else np.ones(len(rows), bool)
        rows = [r for r, k in zip(rows, keep, strict=True) if k]
        if unit == "batch":
            rows = [tuple(np.mean([r[i] for r in rows], axis=0) for i in (0, 1))]
        for row in rows:
            values = [KINDS[kind](g) for g in row]
            total = values if total is None else [t + v for t, v in zip(total, values, strict=True)]
            n += 1
    return {"w": np.abs(total[0] / n), "b": np.abs(total[1] / n)}
