"""Every row of the table trains, and what it does about the people to forget goes the right way."""

import numpy as np
import pytest

from mmu_jax import hf, methods, objectives
from mmu_jax.programs import Programs
from toys import Batches, random_factors, random_mask, run, streams


@pytest.fixture(scope="module")
def kept():
    """Programs that the rows of the table share."""
    return Programs()


@pytest.mark.parametrize("name", [name for name, row in methods.METHODS.items() if not row.edit])
def test_every_method_runs_and_its_forget_loss_goes_the_right_way(llava, name, monkeypatch, kept):
    folder, _, model = llava
    params = hf.load(folder, model)
    mask = random_mask(model, params) if methods.METHODS[name].mask else None
    factors = random_factors(model, params) if methods.METHODS[name].projects else None
    repeated = streams(forget=Batches("forget", 2, 1), refusal=Batches("refusal", 2, 4))
    for seed, one in enumerate(("forget", "refusal"), 1):
        repeated[one].batch = lambda step, one=one, seed=seed: Batches(one, 2, seed).batch(0)
    state = run(model, params, name, mask=mask, factors=factors, data=repeated, programs=kept)
    about = [curve for curve in state.history if curve.startswith(("forget/", "refusal/"))]
    assert about or methods.METHODS[name].family == "control"

    def falls(curve):
        curve = curve[~np.isnan(curve)]
        return curve[-1] < curve[0]

    shared = methods.METHODS[name].moments == "shared"

    def alone(stream, loss):
        """Where steps are of a sum, a loss that is nearly nothing here gives way to the others; so it does to a momentum that is shared."""
        (phase,) = (phase for phase in methods.METHODS[name].phases if stream in phase.losses)
        options = {loss: phase.options[loss]} if loss in phase.options else {}
        only = methods.Method((methods.Phase({stream: loss}, options),))
        monkeypatch.setitem(methods.METHODS, "alone", only)
        found = run(model, params, "alone", data=repeated, programs=kept).history[f"{stream}/{loss}"]
        return (len(phase.losses) > 1 or shared) and falls(np.asarray(found))

    def less_likely(loss):
        """A weight that is held falls with the answer, so that what it is a weight of may rise."""
        batch = repeated["forget"].batch(0)
        before, after = (objectives.take("ascent", objectives.Seen(model, p), batch)[0] for p in (params, state.params))
        return loss in ("wga", "satimp") and after < before

    for curve in about:
        # Of ascent the loss is the negative cross-entropy.
        stream, loss = curve.split("/")
        good = falls(np.asarray(state.history[curve])) or less_likely(loss) or alone(stream, loss)
        assert good or objectives.LOSSES[loss].still  # it moves nothing by itself, and gives way to the retain steps
    assert int(state.failed) == -1 and int(state.step) == 8
