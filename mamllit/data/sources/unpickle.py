"""Reading a pickle of arrays that a stranger made, without running what may be in it.

A pickle is a program: it may import any function and call it. Here it may only ask for what numpy arrays and plain containers
are made of (the names that numpy 1, numpy 2 and Python 2 give them); anything else is refused before it is imported.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def read_pickle(path: str | Path) -> Any:
    """What a pickle of numpy arrays, dicts, lists, tuples, strings and numbers holds.

    Pickles of Python 2 can be read too: their strings are taken for Latin-1, which fits bytes and ASCII names alike.

    Raises:
        ValueError: if the pickle asks for something else (which is not run), or is damaged.
        OSError: if the file cannot be read.
    """
    with Path(path).open("rb") as file:
        try:
            return _ArraysOnly(file, encoding="latin1").load()
        except _Refused as error:
            raise ValueError(f"{path} {error}") from None
        except OSError:
            raise
        except MemoryError as error:
            raise ValueError(f"{path} holds more than fits into memory, or is damaged") from error
        except Exception as error:  # a spoilt pickle can raise nearly anything
            raise ValueError(f"{path} is not a whole pickle ({type(error).__name__}: {error})") from error


class _Refused(Exception):
    """The pickle asked for a name that is not on the list."""


class _ArraysOnly(pickle.Unpickler):
    """Looks every name up in a short list; made anew for each file, for a pickle may set attributes of what it is given."""

    def find_class(self, module: str, name: str) -> Any:
        short = module.replace("numpy._core", "numpy.core")  # numpy 2 renamed it
        found = _allowed().get(f"{short}.{name}")
        if found is None:
            raise _Refused(
                f"asks for {module}.{name}, which an archive of images has no need of and which could run code; nothing was "
                "run. Use a pickle from a source that you trust, or images in folders"
            )
        return found


def _allowed() -> dict[str, Callable[..., Any]]:
    reconstruct: Any = np.zeros(1).__reduce__()[0]
    scalar: Any = np.float32(0).__reduce__()[0]

    def from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> np.ndarray:
        array = np.frombuffer(buffer, dtype)
        if order == "K":  # numpy >= 2.3: the axes are stored in the order that they have in memory
            return array.reshape(shape).transpose(axis_order)
        return array.reshape(shape, order=order)

    def encode(text: str, encoding: str) -> bytes:  # how Python 3 writes bytes in the format of Python 2
        if encoding not in ("latin1", "latin-1"):
            raise _Refused(f"asks for the encoding {encoding!r}; only 'latin1' is read")
        return text.encode("latin1")

    return {
        "numpy.core.multiarray._reconstruct": reconstruct,
        "numpy.core.multiarray.scalar": scalar,
        "numpy.core.numeric._frombuffer": from_buffer,
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
        "_codecs.encode": encode,
        "collections.OrderedDict": OrderedDict,
    }
