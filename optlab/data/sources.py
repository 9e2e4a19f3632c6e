"""The data sets by name: what a config's data source can be.

Each factory takes arguments that can be written in a config, reads its data from disk (or downloads it) when it is
called, and raises `DataError` if that fails. A library that a source needs is imported when it is called.
"""

from optlab.data._arrays import arrays
from optlab.data._images import cifar10, digits, fashion_mnist
from optlab.data._text import text

__all__ = ["arrays", "cifar10", "digits", "fashion_mnist", "text"]
