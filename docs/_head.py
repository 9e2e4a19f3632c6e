"""The attention head of docs/_extra/attention.html: trains it, and writes its numbers into the page.

    .venv/bin/python docs/_head.py

It learns to name the last animal so far. The words alone don't tell which animal was the last, the positions alone
don't tell which words are animals: so the page's slider takes something away at both ends.
"""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optlab
from optlab import schedules
from optlab.theory import attention

PAGE = Path(__file__).parent / "_extra/attention.html"
ANIMALS = ["cat", "dog", "fox", "owl"]
VOCABULARY = [*ANIMALS, "the", "and", "sat", "ran", "saw", "on", "to", "mat", "barn", "too"]
T, D = 11, 8  # words of a sentence, width

Params = dict[str, jax.Array]


def init(key: jax.Array) -> Params:
    shapes = {"words": (len(VOCABULARY), D), "positions": (T, D), "Q": (D, D), "K": (D, D), "V": (D, D)}
    shapes["out"] = (D, len(ANIMALS))
    keys = jax.random.split(key, len(shapes))
    return {name: jax.random.normal(k, shape) * D**-0.5 for (name, shape), k in zip(shapes.items(), keys, strict=True)}


def head(params: Params, sentence_T: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The answers' logits (T, animals), the mixed values (T, D) and the weights (T, T). Values know no positions."""
    words_TxD = params["words"][sentence_T]
    x_TxD = words_TxD + params["positions"]
    mask = attention.causal_mask(T)
    mixed, weights = attention.attention(x_TxD @ params["Q"], x_TxD @ params["K"], words_TxD @ params["V"], mask=mask)
    return mixed @ params["out"], mixed, weights


def last_animal(sentence_T: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last animal up to each word, (T,), and whether there is one."""
    place_T = jax.lax.cummax(jnp.where(sentence_T < len(ANIMALS), jnp.arange(T), -1))
    return jnp.where(place_T < 0, 0, sentence_T[place_T]), place_T >= 0


def loss(params: Params, key: jax.Array) -> jax.Array:
    """Mean cross-entropy on 128 sentences of random words."""
    sentences_BxT = jax.random.randint(key, (128, T), 0, len(VOCABULARY))
    answers, there = jax.vmap(last_animal)(sentences_BxT)
    logits = jax.vmap(lambda sentence: head(params, sentence)[0])(sentences_BxT)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, answers), where=there)


def main(steps: int = 400) -> None:
    tx = optlab.adamw(schedules.warmup_cosine(0.02, steps), weight_decay=0.3)  # decay keeps the weights soft enough
    path = optlab.minimize(loss, tx, init(jax.random.key(0)), steps=steps, key=jax.random.key(1), record=None)
    print(f"loss {float(path.values[-1]):.3f} nats a word (guessing: {np.log(len(ANIMALS)):.3f})")
    params = {name: np.asarray(p, float).round(2).tolist() for name, p in path.final.items()}
    numbers = json.dumps({"vocabulary": VOCABULARY, "animals": ANIMALS, **params}, separators=(",", ":"))
    PAGE.write_text(re.sub("(?<=const trained = ).*(?=;\n)", numbers, PAGE.read_text()))


if __name__ == "__main__":
    main()
