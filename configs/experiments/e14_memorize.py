"""E14. A large network memorizes: shuffled labels; and what decay, early stopping, more data and augmentation do.

128 hidden units have 9,600 parameters, enough for any labels of 300 digits. The labels are right, a fifth of them
random (a tenth of those are right by chance, so that 18 % of the labels are wrong in the rows called "a fifth wrong"),
or all random; every seed has wrong labels of its own. Then, with a fifth random, four remedies: weight decay (the best
of six on the validation images), stopping where the validation error is least, four times as many images (a fifth of
their labels random too), and images shifted by up to one pixel, round the edge. Adam, η = 0.003, batches of 64, 600
steps. Four times the images are trained for as many steps, and for as many epochs, which is four times the steps.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from shared import Learner, Page, band, digits, estimate, main

import optlab
from optlab.models import mlp
from optlab.report import Table

SMALL, RATE = 300, 3e-3
DECAYS = 10.0 ** np.arange(-1.5, 1.1, 0.5)


class Shifted(Learner):
    """A learner whose images are shifted by up to a pixel in each direction, at random."""

    def loss(self, params, key):
        for_rows, for_shift = jax.random.split(key)
        rows = jax.random.randint(for_rows, (self.batch_size,), 0, len(self.train[0]))
        shifts = jax.random.randint(for_shift, (self.batch_size, 2), -1, 2)
        images = jax.vmap(lambda image, by: jnp.roll(image, by, (0, 1)))(self.train[0][rows], shifts)
        return self.mean_loss(params, (images, self.train[1][rows]))


def wrong(labels, share, key):
    """Labels of which a share is replaced by random ones."""
    for_which, for_what = jax.random.split(key)
    is_wrong = jax.random.uniform(for_which, labels.shape) < share
    return jnp.where(is_wrong, jax.random.randint(for_what, labels.shape, 0, 10), labels)


def learners(model, images, labels, share, kind=Learner):
    """key -> a learner whose training labels are wrong as that seed has them."""
    return lambda key: kind(model, (images, wrong(labels, share, jax.random.fold_in(key, 1))))


def errors(make, tx, steps, keys, held):
    """Error on the training examples, (seeds,), and on the held-out sets along training, each (seeds, records)."""

    def run(key):
        learner = make(key)
        path = learner.path(tx, steps, key, lambda p: jnp.stack([learner.error(p, data) for data in held]))
        return learner.error(path.final, learner.train), path.x

    train, curves = jax.vmap(run)(keys)
    return np.asarray(train), *np.moveaxis(np.asarray(curves), -1, 0)


def decayed(make, decays, steps, keys, held):
    """Error on the training examples and on the held-out sets at the end, (sets, decays, seeds)."""

    def run(decay, key):
        learner = make(key)
        final = learner.path(optlab.adamw(RATE, weight_decay=decay), steps, key).final
        return jnp.stack([learner.error(final, data) for data in (learner.train, *held)])

    found = jax.vmap(jax.vmap(run, (None, 0)), (0, None))(jnp.asarray(decays), keys)
    return np.moveaxis(np.asarray(found), -1, 0)


def stopped(on_validation, on_test):
    """The test error where the validation error is least, (seeds,), and after how many steps, the median."""
    best = on_validation.argmin(1)
    return np.take_along_axis(on_test, best[:, None], 1)[:, 0], int(np.median(best))


def measure(smoke: bool) -> Page:
    (images, labels), validation, test = digits()
    model, steps = mlp(outputs=10, widths=[128]), 10 if smoke else 600
    keys = jax.random.split(jax.random.key(0), 2 if smoke else 5)
    held = (validation, test)
    adam, rows, found = optlab.adam(RATE), [], {}
    figure, ax = plt.subplots(figsize=(7, 3.2))

    def add(name, train, last, curve):
        rows.append([name, estimate(train, 1), estimate(last, 1)])
        found[name] = train.mean(), last.mean()
        band(ax, np.arange(steps + 1), curve, label=name)

    for name, share in (("right labels", 0.0), ("a fifth wrong", 0.2), ("all random", 1.0)):
        make = learners(model, images[:SMALL], labels[:SMALL], share)
        train, on_validation, on_test = errors(make, adam, steps, keys, held)
        add(name, train, on_test[:, -1], on_test)
        if name == "a fifth wrong":
            (early, when), noisy = stopped(on_validation, on_test), make
    rows.append([f"a fifth wrong, stopped early (step {when})", "–", estimate(early, 1)])
    train, on_validation, on_test = decayed(noisy, DECAYS, steps, keys, held)
    at = int(on_validation.mean(1).argmin())
    rows.append([f"a fifth wrong, decay {DECAYS[at]:.2g}", estimate(train[at], 1), estimate(on_test[at], 1)])
    more = learners(model, images[: 4 * SMALL], labels[: 4 * SMALL], 0.2)
    train, _, on_test = errors(more, adam, steps, keys, held)
    add("a fifth wrong, four times the images", train, on_test[:, -1], on_test)
    train, on_validation, on_test = errors(more, adam, 4 * steps, keys, held)
    name = "a fifth wrong, four times the images, as many epochs"
    rows.append([name, estimate(train, 1), estimate(on_test[:, -1], 1)])
    found[name] = train.mean(), on_test[:, -1].mean()
    early_of_more, when_of_more = stopped(on_validation, on_test)
    rows.append([f"four times the images, stopped early (step {when_of_more})", "–", estimate(early_of_more, 1)])
    train, _, on_test = errors(learners(model, images[:SMALL], labels[:SMALL], 0.2, Shifted), adam, steps, keys, held)
    add("a fifth wrong, shifted images", train, on_test[:, -1], on_test)
    ax.set(xlabel="step", ylabel="test error, %, all seeds", ylim=(0, 100))
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    random, bad = found["all random"], found["a fifth wrong"]
    return Page(
        f"{len(keys)} seeds, {SMALL} training images.",
        [Table(["training", "training error, %", "test error, %"], rows)],
        figure,
        f"""
        Random labels are learned to {random[0]:.1f} % of training error, with a test error of {random[1]:.0f} %: a
        training error of 0 says nothing about what was learned. With a fifth of the labels random the network learns
        those too ({bad[0]:.1f} % training error), and its test error is {bad[1]:.1f} % where right labels give
        {found["right labels"][1]:.1f} %.

        Early stopping gets back to {early.mean():.1f} % for free, after about {when} of {steps} steps: the right labels
        are learned first, since they agree with each other. Decay ends at {rows[4][2]} %, with λ = {DECAYS[at]:.2g},
        far above the usual 0.01 to 0.1. Shifted images end at {found["a fifth wrong, shifted images"][1]:.1f} %.

        Four times the images end at {found["a fifth wrong, four times the images"][1]:.1f} % after as many steps. Part
        of that is early stopping in disguise, since each image is seen a quarter as often. After as many epochs the
        network has memorized these labels too ({found[name][0]:.1f} % training error), and ends at
        {found[name][1]:.1f} %. More data delay memorizing; stopped early they are the best remedy, at
        {early_of_more.mean():.1f} %.

        Where a remedy works, the training error doesn't reach 0: a training error of 0 on noisy labels is a symptom,
        not a success.
        """,
    )


if __name__ == "__main__":
    main(measure)
