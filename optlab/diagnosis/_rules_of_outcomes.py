"""Rules on the error that ended a run, which names the step and what it saw: evidence -> a finding, or None."""

from __future__ import annotations

from optlab.diagnosis._evidence import Evidence
from optlab.diagnosis._findings import IN_RANGE, Finding, Rule, cause, rate_times

EARLY = 10  # steps: what isn't finite so soon lies as often in the data as in the learning rate


def stopped_being_finite(e: Evidence) -> Finding | None:
    """The guard ended the run at a loss, a gradient or parameters that weren't finite."""
    if e.outcome != "NonFiniteError" or e.error is None:
        return None
    is_early = bool(e.steps[-1] <= EARLY)
    steps, losses = e.curve("train/loss")
    before = f"; the loss was {losses[0]:.4g} at step {steps[0]}" if len(losses) else ""
    before += f" and {losses[-1]:.4g} at step {steps[-1]}" if len(losses) > 1 else ""
    first = "look at the inputs and the labels (a probe does); then a" if is_early else "a"
    return Finding(
        "diverged",
        "ill",
        _first_sentence(e.error) + before,
        f"{first} tenth of the learning rate, or a longer warm-up; clip_norm=1.0 if single batches do it",
        "Goodfellow, Bengio, Courville 2016, Deep Learning, section 8.2.4",
        {} if is_early else rate_times(e, 1 / 10),
        is_fatal=True,
    )


def spiked(e: Evidence) -> Finding | None:
    """The guard ended the run at a loss far above its running mean."""
    if e.outcome != "LossSpikeError" or e.error is None:
        return None
    return Finding(
        "spikes",
        "ill",
        _first_sentence(e.error),
        "half the learning rate, a longer warm-up, clip_norm=1.0; look at the batch's examples",
        "Molybog et al. 2023, arXiv 2304.09871",
        rate_times(e, 1 / 2),
    )


def labels_refused(e: Evidence) -> Finding | None:
    """A label is no class of the outputs."""
    if e.outcome != "LabelError" or e.error is None:
        return None
    return cause(
        "labels out of range",
        _first_sentence(e.error),
        IN_RANGE,
    )


def data_refused(e: Evidence) -> Finding | None:
    """The run ended at examples that it can't use."""
    if e.outcome != "DataError" or e.error is None:
        return None
    return cause("data refused", _first_sentence(e.error), "mend those examples, or leave them out")


def _first_sentence(words: str) -> str:
    """What was seen; the sentences behind it say what to try."""
    return words.partition(". ")[0]


OUTCOME_RULES: tuple[Rule, ...] = (labels_refused, data_refused, stopped_being_finite, spiked)
