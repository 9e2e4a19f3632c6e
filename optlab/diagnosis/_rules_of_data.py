"""Rules on what a probe read of the data, one a function: evidence -> a finding, or None."""

from __future__ import annotations

import numpy as np

from optlab.diagnosis._data import agreement, holds_label, shift
from optlab.diagnosis._evidence import Evidence
from optlab.diagnosis._findings import IN_RANGE, Finding, Rule, cause, listed
from optlab.diagnosis._rules_of_model import starts_off, starts_saturated

# By chance the variance of k means has the relative deviation √(2/(k − 1)): of 16 batches and one column of labels,
# the least that is judged, 0.37. Three is beyond five of these.
DISORDER = 3.0
LEAK = 0.05  # of the held-out rows: a score is then wrong in its second digit
# Standard deviations: below the first, neighbours agree as by chance; from the second on they surely don't.
CHANCE, INFORMED = 3.0, 8.0
UNEQUAL = 100.0  # features' scales: the loss is 10⁴ times as curved along one as along another
LARGE = 30.0  # root mean square of the inputs, where 1 is meant
SHIFT = 3.0  # by how many times a split's features may be wider than the other's


def inputs_not_finite(e: Evidence) -> Finding | None:
    """The inputs hold NaN or infinite values."""
    if e.data is None or not e.data.train.is_numeric:
        return None
    inputs = e.data.train.inputs
    assert inputs is not None
    bad = np.flatnonzero(~np.isfinite(inputs).all(axis=1))
    if not len(bad):
        return None
    return cause(
        "inputs not finite",
        f"{len(bad)} of {len(inputs)} training examples hold NaN or infinite values, the first is number {bad[0]}",
        "leave those examples out, or fill the gaps",
    )


def labels_out_of_range(e: Evidence) -> Finding | None:
    """Labels aren't classes of the outputs."""
    if e.data is None or e.model is None or not e.data.train.has_classes or e.model.outputs is None:
        return None
    labels, outputs = e.data.train.labels, e.model.outputs
    assert labels is not None
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    bad = np.flatnonzero((labels < 0) | (labels >= outputs.shape[1]))
    if not len(bad):
        return None
    return cause(
        "labels out of range",
        f"{len(bad)} of {len(labels)} labels are no class of the model's {outputs.shape[1]} outputs; example {bad[0]} "
        f"has {labels[bad[0]]}",
        IN_RANGE,
    )


def one_class(e: Evidence) -> Finding | None:
    """All training examples have the same label."""
    if e.data is None or (labels := e.data.train.labels) is None or len(labels) < 2 or np.any(labels != labels[0]):
        return None
    return cause(
        "one class",
        f"all {len(labels)} training labels that were read are {np.asarray(labels[0]).tolist()}",
        "look at how the labels are read, and at how the data are split: are they sorted?",
    )


def inputs_alike(e: Evidence) -> Finding | None:
    """All training examples have the same inputs."""
    if e.data is None or (inputs := e.data.train.inputs) is None or len(inputs) < 2 or np.any(inputs != inputs[0]):
        return None
    return cause(
        "inputs all alike",
        f"all {len(inputs)} training examples that were read have the same inputs",
        "look at how they are read and scaled: a whole number divided by 255 is 0 in integers",
    )


def in_order(e: Evidence) -> Finding | None:
    """The labels of a batch are more alike than those of examples that are drawn at random."""
    if e.data is None or (disorder := e.data.disorder) is None or disorder < DISORDER:
        return None
    kind = "class counts" if e.data.batches[0].dtype.kind in "iu" else "mean labels"
    return cause(
        "data in order",
        f"the {kind} of {len(e.data.batches)} batches vary {disorder:.3g} times as much as those of shuffled examples",
        "draw=shuffled, or shuffle before the batches are made",
        "Bengio 2012, arXiv 1206.5533, section 2.2",
        {"draw": "shuffled"} if e.settings else {},
    )


def leaking(e: Evidence) -> Finding | None:
    """Held-out examples are among the training examples."""
    if e.data is None or e.data.is_coarse or (share := e.data.overlap) is None or share < LEAK:
        return None
    return cause(
        "validation leaks",
        f"{share:.0%} of the held-out examples are training examples, too"
        + (f"; {e.data.repeats:.0%} of the training examples are repeated" if e.data.repeats > LEAK else ""),
        "remove duplicates before the data are split; of groups (patients, speakers) put each into one split",
        "Kaufman et al. 2012, Leakage in data mining, doi 10.1145/2382577.2382579",
    )


def label_among_inputs(e: Evidence) -> Finding | None:
    """One feature determines the label, or the label of a token is one that the model sees."""
    if e.data is None:
        return None
    if (by := shift(e.data.train)) is not None and by < 1:
        because = f"the label of a token is {'the token itself' if by == 0 else 'the token before it'}"
        try_ = "labels that are the next tokens: inputs tokens[:-1], labels tokens[1:]"
    elif by == 1 and e.model is not None and e.model.sees_ahead:
        because = "the label of a token is the next one, and outputs depend on the tokens behind their place"
        try_ = "a causal mask in every layer that mixes places: attention, norms and pools over time"
    elif (found := holds_label(e.data.train)) is not None:
        count = e.data.train.inputs.shape[1]  # type: ignore[union-attr]
        because = f"feature {found} of {count} alone determines the label of every example"
        try_ = "leave it out, if it isn't known before the label is"
    else:
        return None
    source = "Kaufman et al. 2012, Leakage in data mining, doi 10.1145/2382577.2382579"
    return cause("label among the inputs", because, try_, source)


def splits_differ(e: Evidence) -> Finding | None:
    """The held-out split has classes that training lacks, or inputs of another scale."""
    if e.data is None or e.data.validation is None:
        return None
    train, held_out = e.data.train, e.data.validation
    because = ""
    if train.has_classes and held_out.has_classes:
        assert train.labels is not None
        assert held_out.labels is not None
        unseen = ~np.isin(held_out.labels, train.labels)
        if np.mean(unseen) > LEAK:
            because = f"{np.mean(unseen):.0%} of the held-out examples have a class that no training example has"
    if not because and train.is_numeric and held_out.is_numeric:
        assert train.inputs is not None
        assert held_out.inputs is not None
        if min(len(train.inputs), len(held_out.inputs)) >= 30 and train.inputs.shape[1] == held_out.inputs.shape[1]:
            a, b = (np.asarray(x.inputs, np.float64) for x in (train, held_out))
            wide, narrow = a.std(), b.std()
            apart = abs(a.mean() - b.mean()) / max(min(wide, narrow), 1e-30)
            if max(wide, narrow) > SHIFT * min(wide, narrow) or apart > SHIFT:
                because = (
                    f"the training inputs have the mean {a.mean():.3g} and the deviation {wide:.3g}, the held-out ones "
                    f"{b.mean():.3g} and {narrow:.3g}"
                )
    if not because:
        return None
    return cause(
        "splits differ", because, "split at random, and scale every split by the statistics of the training examples"
    )


def labels_apart_from_inputs(e: Evidence) -> Finding | None:
    """Neighbours in the training data have unrelated labels, and nothing was learned that holds for others."""
    if e.data is None or e.has_generalized or e.is_informed:
        return None
    if (found := agreement(e.data.train)) is None or found > CHANCE:
        return None
    held_out = None if e.data.validation is None else agreement(e.data.validation)
    beside = f", those of held-out ones by {held_out:.1f}" if held_out is not None and held_out > INFORMED else ""
    if not beside and not e.is_unlearned and not e.knows_shares_alone:
        return None
    return cause(
        "labels apart from inputs",
        f"the labels of neighbouring examples agree by {found:.1f} standard deviations more than chance{beside}",
        "was one of inputs and labels shuffled or sorted without the other? Look at a few examples with their labels",
        "Cover and Hart 1967, doi 10.1109/TIT.1967.1053964; Zhang et al. 2017, arXiv 1611.03530",
    )


def features_not_scaled(e: Evidence) -> Finding | None:
    """Inputs are large, or some of them are far larger than others."""
    if e.data is None or not e.data.train.is_numeric:
        return None
    inputs = np.asarray(e.data.train.inputs, np.float64)
    size = np.sqrt(np.mean(inputs**2, axis=0))
    size = size[size > 0]
    if not len(size) or not np.isfinite(size).all():
        return None
    usual, largest, whole = np.median(size), size.max(), np.sqrt(np.mean(inputs**2))
    labels = e.data.train.labels
    label = 0.0 if labels is None or labels.dtype.kind != "f" else float(np.sqrt(np.mean(np.float64(labels) ** 2)))
    if largest > UNEQUAL * usual:
        because = f"the largest feature is {largest / usual:.3g} times the median one (root mean squares)"
    elif usual > UNEQUAL * (smallest := np.quantile(size, 0.1)) and len(size) < 100:
        because = f"features differ by a factor of {usual / smallest:.3g} (root mean squares)"
    elif whole > LARGE or whole < 1 / LARGE**2:
        because = f"the inputs' root mean square is {whole:.3g}"
    elif label > LARGE:
        because = f"the labels' root mean square is {label:.3g}"
    else:
        return None
    return cause(
        "features not scaled",
        because,
        "shift and scale each feature, and what is predicted, to mean 0 and deviation 1 by the training examples "
        "(standardize=True)",
        "LeCun et al. 1998, Efficient BackProp, section 4.3",
        severity="ill" if e.is_left or label > LARGE or starts_off(e) or starts_saturated(e) else "note",
    )


def repeated(e: Evidence) -> Finding | None:
    """Most training examples are copies of others."""
    if e.data is None or e.data.is_coarse or e.data.repeats < 0.5:
        return None
    return cause(
        "examples repeated",
        f"{e.data.repeats:.0%} of the training examples that were read are copies of others",
        "remove the copies, or weight the examples",
        "Lee et al. 2022, arXiv 2107.06499",
        severity="note",
    )


def unbalanced(e: Evidence) -> Finding | None:
    """One class has nearly all training examples."""
    if e.data is None or not e.data.train.has_classes:
        return None
    classes, counts = np.unique(np.asarray(e.data.train.labels), return_counts=True)
    if len(classes) < 2 or counts.max() < 0.9 * counts.sum():
        return None
    rare = [f"{c} with {n}" for c, n in zip(classes.tolist(), counts.tolist(), strict=True) if n < counts.max()]
    return cause(
        "one class dominates",
        f"{counts.max() / counts.sum():.0%} of the training examples have the class {classes[counts.argmax()]}; there "
        f"are {listed(rare)}",
        "measure more than accuracy; weight the classes, or draw the rare ones more often",
        "He and Garcia 2009, doi 10.1109/TKDE.2008.239",
        severity="note",
    )


DATA_RULES: tuple[Rule, ...] = (
    inputs_not_finite,
    labels_out_of_range,
    one_class,
    inputs_alike,
    leaking,
    label_among_inputs,
    splits_differ,
    in_order,
    labels_apart_from_inputs,
    features_not_scaled,
    unbalanced,
    repeated,
)
