"""Data sources by name: the one list of those that a config can name.

Each factory takes arguments that a config can hold, reads its data from disk (or downloads it) when it is called, and
raises `DataError` if that fails. A library that one source alone needs is imported when the source is called.
"""

from optlab.data._arrays import arrays
from optlab.data._images import cifar10, digits, fashion_mnist
from optlab.data._text import text

__all__ = ["arrays", "cifar10", "digits", "fashion_mnist", "text"]
