"""Wrapping and headings of both range tests' words."""

from __future__ import annotations

import textwrap
from typing import Any

from optlab.compare.contenders import origin
from optlab.training import Workload

wrap = textwrap.TextWrapper(100, subsequent_indent=" " * 12).fill  # a label's lines hang below its text


def name_of(factory: Any) -> str:
    """The name of an optimizer's factory, which may be given by it."""
    return factory if isinstance(factory, str) else origin(factory)


def title(workload: Workload, factory: Any) -> str:
    """The workload and the optimizer, for the heading of a result."""
    return f"{workload.name}, {name_of(factory)}"
