"""A run that an earlier optlab saved (commit 25ec54a, jax 0.10.2) is read bit for bit."""

from pathlib import Path

from optlab.runs import Checkpoints, load_params
from optlab.runs._fingerprints import fingerprints

SAVED = Path(__file__).with_name("saved")


def test_an_earlier_checkpoint_is_read():
    checkpoints = Checkpoints.of(SAVED)
    assert checkpoints.steps() == [2, 4]
    assert checkpoints.notes(4)["best"] == [2, 0.09]
    prints = {leaf["name"]: leaf["fingerprint"] for leaf in checkpoints.contents(4)}
    params = load_params(SAVED)
    assert fingerprints({"params/head/bias": params["head"]["bias"]})["params/head/bias"] == prints["params/head/bias"]
    assert load_params(SAVED, collection="ema")["hidden_0"]["kernel"].shape == (64, 2)
