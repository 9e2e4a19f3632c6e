"""The named optimizers: each is one visible chain of blocks, the learning rate among them.

Where a name is optax's, its arguments, defaults and numbers are optax's, and what is added is a new argument. The
learning rate is a number, a schedule, or a traced scalar. Weight decay is for all parameters, or for the roles named in
`decay_roles` (see `optlab.roles`). What differs between here, torch and the papers:

=============  =================================  ==========================  =========================================
what           here, as in optax if it has it     torch                       paper
=============  =================================  ==========================  =========================================
sgd            heavy ball, v ← βv + g             the same                    often the average βm + (1 − β)g:
                                                                              `momentum(β, style="ema")`
sgd decay      L2, λθ joins g; λ = 0 (new)        the same
signum         sign of the average                has none                    the same
softsign_sgd   x / (|x| + ε) (optax has none)     has none
adagrad        s starts at 0.1, g/√(s + 1e-7)     at 0, g/(√s + 1e-10)        at 0, g/(√s + ε): eps_in_sqrt=False,
                                                                              initial_accumulator_value=0
rmsprop        ρ = 0.9, g/√(v + 1e-8)             ρ = 0.99, g/(√v + 1e-8)     ρ = 0.9, g/(√v + ε): eps_in_sqrt=False
               momentum after the learning rate   before it                   before it
adam           ε = 1e-8 outside the root          the same                    the same
adam_l2        λ = 1e-4 (optax has none)          Adam(weight_decay=0)
adamw          λ = 1e-4, times the rate           λ = 1e-2, times the rate    times the schedule's factor alone
nadam          β₁ constant                        β₁·(1 − ½·0.96^(t/250))     constant (Dozat), or with that schedule
lion           λ = 1e-3                           has none                    3 to 10 times AdamW's
muon           λ = 0.1; scale="rms",              λ = 0.1; √max(1, out/in);   "rms" 2502.16982, "spectral" Jordan 2024
               0.2·√max(in, out); AdamW within    matrices only
normuon        nesterov=True, as its code         has none                    without Nesterov's momentum
adamuon        nesterov=True, as its code         has none                    without; the same β for both moments
muonh          nesterov=True; the rest's λ = 0    has none                    the rest by Adam
soap           λ = 0.01, as its code; the first   has none                    m, v and the bases in every layer; by
               step finds the bases               (pytorch_optimizer: same)   roles here, AdamW moves the rest
shampoo        averages, Adam's size (grafting)   has none                    sums (2018), grafting (2309.06497)
=============  =================================  ==========================  =========================================

In 16 bits the numbers are not optax's: the blocks compute in float32, and keep second moments in it.
"""

from optlab.optimizers._coordinates import (
    adagrad,
    adam,
    adam_l2,
    adamw,
    lion,
    nadam,
    rmsprop,
    sgd,
    signsgd,
    signum,
    softsign_sgd,
)
from optlab.optimizers._matrices import adamuon, muon, muonh, normuon, shampoo, soap

__all__ = [
    "adagrad",
    "adam",
    "adam_l2",
    "adamuon",
    "adamw",
    "lion",
    "muon",
    "muonh",
    "nadam",
    "normuon",
    "rmsprop",
    "sgd",
    "shampoo",
    "signsgd",
    "signum",
    "soap",
    "softsign_sgd",
]
