"""Whether a vanilla model knows what it is to forget, and what to do if not."""

from mmu_jax.metrics import METRICS
from mmu_jax.overlap import exact
from mmu_jax.questions import Prompts


def refusal(results: dict, headline: str, memorised: float, *, trained: bool, prompts: Prompts) -> str | None:
    """Why nothing should be unlearned from a vanilla model with these ``results``, and what to do; None if it knows them.

    Args:
      headline: the metric that must reach ``memorised`` (0 to 1) on photos of the people to forget.
      trained: whether the model was fine-tuned here.
      prompts: how it was asked.
    """
    forget, retain = (results[split]["vqa"] for split in ("forget", "retain"))
    if headline not in forget:
        there = ", ".join(name for name in forget if name != "distinct") or "none at all"
        return (
            f"expected the headline metric {headline} of the people to forget, found only {there}; set "
            "config.evaluate.headline to one that the data set has items for"
        )
    known, kept = forget[headline]["mean"], retain.get(headline, {}).get("mean", 0.0)
    if known >= memorised:
        return None
    advice, overlap = [], forget.get("rouge_l", {}).get("mean", 0.0)
    sentences = "sentence" in prompts.generation or overlap >= max(0.3, 2 * known)
    if METRICS[headline].of is exact and sentences:
        advice.append(
            f"{headline} wants the very words, and the model answers or is asked in sentences (ROUGE-L {100 * overlap:.0f} %): set "
            "config.evaluate.headline=rouge_l, or ask for less in config.evaluate.prompts"
        )
    if trained:
        advice.append("train it longer in another --workdir (config.vanilla.epochs)")
    elif kept >= memorised:
        advice.append(
            f"it knows the people to keep ({100 * kept:.1f} %): config.data.forget is another split than it was taught, or "
            "it has forgotten them already"
        )
    else:
        advice.append(
            f"it was not trained here and knows the people to keep no better ({100 * kept:.1f} %): give the model that was "
            "taught this data set (config.vanilla.path), or the data set that it was taught (config.data)"
        )
    return (
        f"expected a vanilla model that knows the people to forget ({headline} on their VQA of at least {100 * memorised:.1f} "
        f"%), found {100 * known:.1f} %; {'; '.join(advice)}; or lower config.evaluate.memorised to go on all the same"
    )
