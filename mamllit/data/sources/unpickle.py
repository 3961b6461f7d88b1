"""Reading a pickle of arrays that a stranger made, without running what may be in it.

A pickle is a program: it may import any function and call it, and numpy's own functions, called with wrong arguments, can end
the process. So the program is not given to `pickle`: its steps, as `pickletools` lists them, are followed here, only those that
numbers, texts, lists, dicts and numeric arrays need; and every array is made here, of bytes that are in the file.
"""

import mmap
import pickletools
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

STEPS = (
    2_000_000  # of a pickle's program; the largest of mini-ImageNet takes some 40,000, or 300,000 where it has numpy's integers
)
DIMENSIONS = 8
NUMERIC = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248])")
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
MARK = object()


def read_pickle(path: str | Path) -> Any:
    """What a pickle of numeric numpy arrays, dicts, lists, tuples, texts and numbers holds.

    Pickles of Python 2 can be read too: their strings are taken for Latin-1, which fits bytes and ASCII names alike.

    Raises:
        ValueError: if the pickle asks for something else (which is not run), or is damaged.
        OSError: if the file cannot be read.
    """
    with Path(path).open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as program:
                return _Machine(len(program)).run(program)
        except _Refused as error:
            raise ValueError(f"{path} {error}") from None
        except OSError:
            raise
        except MemoryError as error:
            raise ValueError(f"{path} does not fit into memory, or is damaged") from error
        except Exception as error:  # a spoilt pickle can raise nearly anything
            raise ValueError(f"{path} is not a complete pickle ({type(error).__name__}: {error})") from error


class _Refused(Exception):
    """The pickle asked for something that an archive of images has no need of."""


class _Pending:
    """An array or a data type that a later step completes, by calling `build` with a state."""

    def __init__(self, build: Callable[..., Any]) -> None:
        self.build, self.made = build, None


class _Machine:
    """The stack and the memory of a pickle's program of `size` bytes."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.memory: list[Any] = []
        self.places: dict[int, int] = {}  # a program numbers its memory as it likes
        self.encoded = self.size = size
        self.functions = {
            "numpy.core.multiarray._reconstruct": self._reconstruct,
            "numpy.core.multiarray.scalar": _scalar,
            "numpy.core.numeric._frombuffer": _from_buffer,
            "numpy.ndarray": _not_called,
            "numpy.dtype": _dtype,
            "_codecs.encode": self._encode,
            "collections.OrderedDict": _ordered_dict,
        }

    def run(self, program: Any) -> Any:
        """The value that the program ends with."""
        for steps, (code, argument, _) in enumerate(pickletools.genops(program)):
            if steps >= STEPS:
                raise _Refused(f"takes more than {STEPS:,} steps to read, which an archive of images does not need")
            if code.name == "STOP":
                return self._value(self.stack.pop())
            self._step(code.name, argument)
        raise ValueError("it has no end")

    def _step(self, name: str, argument: Any) -> None:
        push = self.stack.append
        if name in VALUES:
            push(argument)
        elif name in CONSTANTS:
            push(CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            push(MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.places[len(self.places) if name == "MEMOIZE" else int(argument)] = len(self.memory)
            self.memory.append(self.stack[-1])
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            push(self._value(self.memory[self.places[int(argument)]]))
        elif name in ("EMPTY_LIST", "LIST"):
            push([] if name == "EMPTY_LIST" else self._marked())
        elif name in ("EMPTY_TUPLE", "TUPLE"):
            push(() if name == "EMPTY_TUPLE" else tuple(self._marked()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            push(tuple(self._popped(int(name[-1]))))
        elif name in ("EMPTY_DICT", "DICT"):
            push({} if name == "EMPTY_DICT" else _filled({}, self._marked()))
        elif name in ("APPEND", "APPENDS"):
            values = self._popped(1) if name == "APPEND" else self._marked()
            _expected(self.stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            pairs = self._popped(2) if name == "SETITEM" else self._marked()
            _filled(_expected(self.stack[-1], dict), pairs)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            push(self._function(argument.split(" ", 1) if name == "GLOBAL" else self._popped(2)))
        elif name == "REDUCE":
            function, arguments = self._popped(2)
            if not any(function is known for known in self.functions.values()):
                raise _Refused("calls something that is not a function")
            push(function(*_expected(arguments, tuple)))
        elif name == "BUILD":
            value, state = self._popped(2)
            pending = _expected(value, _Pending)
            pending.made = pending.build(*_expected(state, tuple))
            push(pending.made)
        else:
            raise _Refused(f"has a step {name}, which an archive of images does not need; nothing was run")

    def _popped(self, count: int) -> list[Any]:
        values = self.stack[-count:]
        if len(values) < count or any(value is MARK for value in values):
            raise ValueError("a step finds too few values on the stack")
        del self.stack[-count:]
        return values

    def _marked(self) -> list[Any]:
        """All above the last mark, which goes too."""
        start = len(self.stack) - 1
        while self.stack[start] is not MARK:
            start -= 1
            if start < 0:
                raise ValueError("a step finds no mark on the stack")
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    @staticmethod
    def _value(value: Any) -> Any:
        return value.made if isinstance(value, _Pending) and value.made is not None else value

    def _function(self, names: list[Any]) -> Callable[..., Any]:
        module, name = (_expected(text, str) for text in names)
        short = module.replace("numpy._core", "numpy.core")  # numpy 2 renamed it
        found = self.functions.get(f"{short}.{name}")
        if found is None:
            raise _Refused(
                f"asks for {module}.{name}, which an archive of images does not need and which could run code; nothing was "
                "run. Use a pickle from a source that you trust, or images in folders"
            )
        return cast("Callable[..., Any]", found)

    def _reconstruct(self, cls: Any, shape: Any, code: Any) -> _Pending:
        return _Pending(self._array)

    def _array(self, version: Any, shape: Any, dtype: Any, fortran: Any, data: Any) -> NDArray[Any]:
        if isinstance(data, str):  # of Python 2
            data = self._encode(data, "latin1")
        return _from_buffer(data, dtype, shape, "F" if fortran else "C")

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """How Python 3 writes bytes in the format of Python 2; all together are no longer than the file."""
        if _expected(encoding, str) not in ("latin1", "latin-1"):
            raise _Refused(f"asks for the encoding {encoding!r}; only 'latin1' is supported")
        data = _expected(text, str).encode("latin1")
        self.encoded -= len(data)
        if self.encoded < 0:
            raise _Refused(f"creates more than the {self.size:,} bytes that it has")
        return data


def _expected(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a step finds a {type(value).__name__.strip('_')} where it needs a {kind.__name__.strip('_')}")
    return value


def _filled(target: dict, pairs: list[Any]) -> dict:
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not (isinstance(key, str | bytes) or (isinstance(key, int) and abs(key) < 2**31)):
            raise _Refused(f"has a key that is a {type(key).__name__}; keys must be strings or integers")
        target[key] = value
    return target


def _ordered_dict(pairs: Any = ()) -> dict:
    return _filled({}, [part for pair in pairs for part in _expected(pair, list)])  # as Python 2 writes it


def _not_called(*arguments: Any) -> None:
    raise _Refused("makes an array with numpy.ndarray, which an archive of images does not need")


def _dtype(name: Any, *flags: Any) -> _Pending:
    if not isinstance(name, str) or NUMERIC.fullmatch(name) is None:
        what = name[:30] if isinstance(name, str) else f"a {type(name).__name__}"
        raise _Refused(f"holds an array of {what!r}; only numbers are read (b1, i1 to i8, u1 to u8, f2 to f8)")

    def build(version: Any, order: Any, *rest: Any) -> np.dtype:
        # what numpy itself writes for numbers; another state would make another type of it
        if order not in ("|", "<", ">", "=") or rest not in ((None, None, None, -1, -1, 0), (None, None, None, -1, -1)):
            raise _Refused(f"changes the data type {name} into another, which an array of numbers never does")
        return np.dtype(name) if order == "|" else np.dtype(name).newbyteorder(order)

    return _Pending(build)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> NDArray[Any]:
    """An array of bytes that are there: whatever the shape says, no more is made."""
    kind, sizes = _expected(dtype, np.dtype), (shape,) if isinstance(shape, int) else _expected(shape, tuple)
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"expected the bytes of an array, found a {type(data).__name__}")
    if not all(isinstance(size, int) for size in sizes):  # before they are written out: a tuple of tuples may be endless
        raise ValueError("the shape of an array is not made of integers")
    if len(sizes) > DIMENSIONS or not all(0 <= size < 2**40 for size in sizes):
        raise _Refused(f"holds an array of shape {str(sizes)[:60]}; it may have {DIMENSIONS} dimensions, each from 0 to 2**40")
    if prod(sizes) * kind.itemsize != len(data):
        raise _Refused(f"holds an array of shape {list(sizes)} of {kind}, but {len(data):,} bytes for it")
    array = np.frombuffer(data, kind)
    if order == "K":  # numpy >= 2.3: the axes are stored in the order that they have in memory
        return array.reshape(sizes).transpose(_expected(axes, tuple))
    return array.reshape(sizes, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: Any) -> Any:
    if isinstance(data, str):
        data = data.encode("latin1")
    return _from_buffer(data, dtype, 1, "C")[0]
