"""Files of a data set, found at the user's path, below OPTLAB_DATA, or by a download whose hash is checked."""

import importlib
import os
import textwrap
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from optlab._extras import need
from optlab.data._types import DataError


def require(module: str, wanted_by: str) -> ModuleType:
    """Imports a library that only some sources need. If it is missing, the error says how to install it."""
    need(wanted_by, module.partition(".")[0])
    return importlib.import_module(module)


def places(name: str, path: str | os.PathLike | None) -> list[Path]:
    """Lists where to look for a data set: at the path alone if one is given, else below OPTLAB_DATA if that is set."""
    if path is not None:
        place = Path(path).expanduser()
        if not place.exists():
            raise DataError(f"{name}: the path {str(path)!r} doesn't exist")
        return [place]
    if not os.environ.get("OPTLAB_DATA"):
        return []
    root = Path(os.environ["OPTLAB_DATA"]).expanduser()
    if not root.is_dir():
        raise DataError(f"{name}: the environment's OPTLAB_DATA={root} is no folder")
    place = root / name
    if place.is_symlink() and not place.exists():
        raise DataError(f"{name}: {place} is a link to {os.readlink(place)}, which isn't there")
    return [place, root]


def mapped(values: np.ndarray) -> np.memmap | None:
    """Returns the memory-mapped file that an array is a view of, or None."""
    found: np.memmap | None = None
    owner: Any = values
    while isinstance(owner, np.ndarray):
        found = owner if isinstance(owner, np.memmap) else found
        owner = owner.base
    return found


def check_whole(name: str, values: np.ndarray) -> None:
    """Refuses an array whose file has become shorter since it was mapped: reading past its end kills the process.

    Raises:
        DataError: it names the file.
    """
    file = mapped(values)
    mapping: Any = None if file is None else file.base
    if file is None or mapping is None:
        return
    # The size comes from the mapping's own descriptor, since another file may have its name by now.
    held, needed = mapping.size(), file.offset + file.nbytes
    if held < needed:
        raise DataError(
            f"{name}: {file.filename} was cut from {needed:,} bytes to {held:,} while it was in use: put it back, and "
            "run the same again"
        )


def not_found(name: str, wanted: str, looked: list[Path], url: str, reason: str = "") -> DataError:
    """Makes the error for missing files: where they were looked for, and how to get them."""
    where = ", ".join(str(place) for place in looked)
    return DataError(
        f"{name}: no {wanted} in {where}{reason}.\n"
        f"Get it from {url} and give path='FOLDER', or put it below a folder named by OPTLAB_DATA."
    )


def download(name: str, url: str, sha256: str, looked: list[Path]) -> Path:
    """Returns the file behind a URL from pooch's cache, into which it is downloaded first. Its hash is checked."""
    pooch = require("pooch", f"{name}, to be downloaded,")
    require("tqdm", f"{name}, to be downloaded with a progress bar,")
    cache, file = pooch.os_cache("optlab"), url.rsplit("/", 1)[1]
    fetch = pooch.HTTPDownloader(progressbar=True, chunk_size=2**16)
    try:
        return Path(pooch.retrieve(url, f"sha256:{sha256}", fname=file, path=cache, downloader=fetch))
    # pooch raises ValueError for a wrong hash; requests' errors and a full or read-only disk are OSErrors.
    except (OSError, ValueError) as error:
        offline = isinstance(error, require("requests", "pooch").ConnectionError)
        why = "there is no connection" if offline else textwrap.shorten(str(error), 160)
        raise not_found(name, file, [*looked, Path(cache)], url, f", and it can't be downloaded: {why}") from error


def gunzip(path: Path) -> tuple[bytes, bool]:
    """Reads a .gz file. Returns its content and whether its end was reached, where the checksum stands."""
    stream = zlib.decompressobj(wbits=31)
    try:
        return stream.decompress(path.read_bytes()), stream.eof
    except zlib.error as error:
        raise DataError(
            f"{path} is damaged, or no gzip file ({error}; {path.stat().st_size:,} bytes): get it again"
        ) from error
