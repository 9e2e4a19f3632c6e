"""What an installed optlab has to do, alone and with the extra "train". Run from an empty folder."""

import sys
from pathlib import Path

import jax.numpy as jnp

import optlab

print("optlab", optlab.__version__, "from", Path(optlab.__file__).parent)
params = {"dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
tx = optlab.muon(1e-3)
tx.update(params, tx.init(params), params)

if sys.argv[1:] == ["train"]:
    from optlab.commands import main
    from optlab.training import Workload, train

    workload, tx = Workload.digits(), optlab.muon(3e-3)
    history = train(workload, tx, steps=20, run="run")
    assert history["validation/loss"][1][-1] < history["validation/loss"][1][0]
    loaded = optlab.load_run("run", workload=workload, tx=tx)
    assert loaded.predict(jnp.zeros((2, 8, 8, 1))).shape == (2, 10)
    assert main(["list"]) == 0
    assert main(["checkpoints", "run"]) == 0
else:
    said = ""
    try:
        import optlab.training
    except ImportError as error:
        said = str(error)
    assert "pip install 'FILE.whl[train]'" in said, said or "the packages of the extra are there already"
