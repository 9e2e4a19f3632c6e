"""The blocks: pure `optax.GradientTransformation`s that each do one thing, to be put into an `optax.chain`.

They work wherever optax's do. Updates keep the dtype of the gradients; nothing is computed in less than float32.
"""

from optlab.transforms._cautious import cautious
from optlab.transforms._decay import decay_weights
from optlab.transforms._decay_after import decay_after_step
from optlab.transforms._learning_rate import scale_by_learning_rate
from optlab.transforms._moments import scale_by_adagrad, scale_by_adam, scale_by_rms
from optlab.transforms._momentum import momentum
from optlab.transforms._normalize import normalize
from optlab.transforms._probe import probe
from optlab.transforms._scaling import scale_by_matrix_shape
from optlab.transforms._sign import scale_by_sign, scale_by_softsign
from optlab.transforms.matrices._eigenbasis import scale_by_shampoo, scale_by_soap
from optlab.transforms.matrices._norms import keep_weight_norm, scale_by_neuron_rms, scale_to_rms, scale_to_weight_norm
from optlab.transforms.matrices._orthogonalize import orthogonalize

__all__ = [
    "cautious",
    "decay_after_step",
    "decay_weights",
    "keep_weight_norm",
    "momentum",
    "normalize",
    "orthogonalize",
    "probe",
    "scale_by_adagrad",
    "scale_by_adam",
    "scale_by_learning_rate",
    "scale_by_matrix_shape",
    "scale_by_neuron_rms",
    "scale_by_rms",
    "scale_by_shampoo",
    "scale_by_sign",
    "scale_by_soap",
    "scale_by_softsign",
    "scale_to_rms",
    "scale_to_weight_norm",
]
