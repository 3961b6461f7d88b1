"""Pickles of arrays are read, in every protocol and from both Pythons; pickles with code in them are refused unrun."""

import os
import pickle
import re
import subprocess
import tracemalloc
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mamllit.data.sources.unpickle import read_pickle

ARRAY = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3) + 180  # bytes above 127 too

# {'image_data': <2 bytes, 200 and 7>, 'n': [1]} as Python 2.7 with numpy 1.16 writes it: cPickle.dumps(..., 2)
PYTHON_2 = (
    b"\x80\x02}q\x01(U\nimage_dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
    b"(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    b"U\x02\xc8\x07tbU\x01nq\x08]q\tK\x01au."
)


def written(path: Path, value: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_protocol_can_be_read(protocol: int, order: Any, tmp_path: Path) -> None:
    value = {"image_data": np.array(ARRAY, order=order), "class_dict": OrderedDict(n01=[0], n02=[np.int64(1)])}
    data = read_pickle(written(tmp_path / "x.pkl", value, protocol))
    assert np.array_equal(data["image_data"], ARRAY)
    assert data["image_data"].dtype == np.uint8
    assert data["class_dict"] == {"n01": [0], "n02": [1]}


def test_the_bytes_of_python_3_in_protocol_2_are_read(tmp_path: Path) -> None:
    """Protocol 2 has no bytes: Python 3 writes text and a call of _codecs.encode; mini-ImageNet's pickles are such."""
    path = written(tmp_path / "x.pkl", ARRAY, 2)
    assert b"_codecs" in path.read_bytes()
    assert np.array_equal(read_pickle(path), ARRAY)


def test_python_2_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(PYTHON_2)
    data = read_pickle(tmp_path / "x.pkl")
    assert data["image_data"].tolist() == [200, 7]
    assert data["n"] == [1]


@pytest.mark.parametrize(
    ("new", "old"),
    [("numpy._core.multiarray", "numpy.core.multiarray"), ("numpy._core.numeric", "numpy.core.numeric")],
)
@pytest.mark.parametrize("to_new", [True, False])
def test_both_names_of_numpy_s_core_are_known(new: str, old: str, to_new: bool, tmp_path: Path) -> None:
    protocol = 5 if "numeric" in new else 2  # which use the one and the other
    data = pickle.dumps(ARRAY, protocol)
    for source in (new, old):
        target = new if to_new else old
        data = data.replace(b"\x8c" + bytes([len(source)]) + source.encode(), b"\x8c" + bytes([len(target)]) + target.encode())
        data = data.replace(b"c" + source.encode() + b"\n", b"c" + target.encode() + b"\n")
    if protocol == 5:  # the frame's length no longer fits: leave it out
        data = data[:2] + data[11:]
    assert (new if to_new else old).encode() in data
    (tmp_path / "x.pkl").write_bytes(data)
    assert np.array_equal(read_pickle(tmp_path / "x.pkl"), ARRAY)


class Runs:
    """Unpickling it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    value = {"image_data": ARRAY, "class_dict": Runs(os.system, f"touch {marker}")}
    path = written(tmp_path / "x.pkl", value, protocol)
    with pytest.raises(ValueError, match=r"x.pkl asks for \w+.system, which an archive of images does not need") as caught:
        read_pickle(path)
    assert "nothing was run" in str(caught.value)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()  # it was code indeed


@pytest.mark.parametrize(
    "function",
    [
        eval,
        exec,
        getattr,
        subprocess.Popen,
        np.load,
        np.core.multiarray.fromfile if hasattr(np, "core") else np.fromfile,
        deque,
    ],
    ids=lambda function: function.__name__,
)
def test_nothing_else_can_be_asked_for(function: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which could run code"):
        read_pickle(written(tmp_path / "x.pkl", Runs(function, "1")))


def test_dotted_names_do_not_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.")
    with pytest.raises(ValueError, match=r"asks for numpy\.ndarray\.__init__"):
        read_pickle(tmp_path / "x.pkl")


def test_only_latin_1_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00rot_13\x86R.")
    with pytest.raises(ValueError, match=r"asks for the encoding 'rot_13'; only 'latin1' is supported"):
        read_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps(ARRAY)[:-20]], ids=["empty", "text", "truncated"])
def test_what_is_no_whole_pickle_is_said_so(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=r"x.pkl is not a complete pickle \("):
        read_pickle(tmp_path / "x.pkl")


def test_more_than_memory_holds_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("mamllit.data.sources.unpickle._Machine.run", too_much)
    with pytest.raises(ValueError, match="does not fit into memory, or is damaged"):
        read_pickle(written(tmp_path / "x.pkl", ARRAY))


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "x.pkl")


# ---- forged: numpy's functions with arguments that end the process, shapes and texts that do not end ------------------


DTYPE = b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1K\x00K\x01tR"
STATE = b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"


def array_of(shape: bytes, dtype: bytes = DTYPE + STATE, data: bytes = b"C\x02ab") -> bytes:
    """The steps that make an array of a shape: `shape` and `data` are steps too."""
    return RECONSTRUCT + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"


def integer(value: int) -> bytes:
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


# 2**199 numbers, if spelt out
NESTED = b"(K\x01\x85q\x01" + b"".join(b"h%c" % i * 2 + b"\x86q%c" % (i + 1) for i in range(1, 200)) + b"t"
OBJECTS = DTYPE.replace(b"\x02\x00\x00\x00u1", b"\x02\x00\x00\x00O8")
FORGED = {
    "objects by numpy.ndarray": (
        b"cnumpy\nndarray\nK\x04\x85X\x01\x00\x00\x00O\x86R",
        "makes an array with numpy.ndarray, which an archive of images does not need",
    ),
    "objects by _reconstruct": (
        array_of(b"K\x01\x85", OBJECTS + STATE, b"]K\x01a"),
        "holds an array of 'O8'; only numbers are read",
    ),
    "a structure": (DTYPE.replace(b"\x02\x00\x00\x00u1", b"\x04\x00\x00\x00O,u1"), "holds an array of 'O,u1'; only numbers"),
    "a type given a structure": (
        DTYPE + STATE.replace(b"NNN", b"NX\x01\x00\x00\x00a\x85N"),
        "changes the data type u1 into another, which an array of numbers never does",
    ),
    "a type given another size": (
        DTYPE + STATE.replace(b"|NNNJ\xff\xff\xff\xff", b"|NNNJ\x00\xff\xff\x0f"),
        "changes the data type u1 into another",
    ),
    "a type with objects inside": (DTYPE + STATE.replace(b"K\x00tb", b"K\x3ftb"), "changes the data type u1 into another"),
    "a giant shape": (
        array_of(integer(2**36) + b"\x85"),
        "holds an array of shape [68719476736] of uint8, but 2 bytes for it",
    ),
    "a shape beyond any": (array_of(integer(2**90) + b"\x85"), "it may have 8 dimensions, each from 0 to 2**40"),
    "a negative shape": (array_of(b"J\xff\xff\xff\xff\x85"), "holds an array of shape (-1,); it may have"),
    "a hundred dimensions": (array_of(b"(" + b"K\x01" * 100 + b"t"), "it may have 8 dimensions"),
    "an endless shape": (array_of(NESTED), "the shape of an array is not made of integers"),
    "a giant buffer": (
        b"cnumpy.core.numeric\n_frombuffer\n(C\x02ab" + DTYPE + STATE + integer(2**36) + b"\x85X\x01\x00\x00\x00CtR",
        "holds an array of shape [68719476736] of uint8, but 2 bytes for it",
    ),
    "an object as a scalar": (
        b"cnumpy.core.multiarray\nscalar\n" + OBJECTS + STATE + b"C\x08abcdefgh\x86R",
        "holds an array of 'O8'",
    ),
    "an endless name": (b"}" + NESTED + b"K\x01s", "has a key that is a tuple; keys must be strings or integers"),
    "an endless type": (b"cnumpy\ndtype\n(" + NESTED + b"K\x00K\x01tR", "holds an array of 'a tuple'; only numbers"),
    "a text encoded again and again": (
        b"X\xe8\x03\x00\x00" + b"a" * 1000 + b"q\x01"
        + b"c_codecs\nencode\nh\x01X\x06\x00\x00\x00latin1\x86R" * 50,
        "creates more than the",
    ),
    "an object of a class": (b"cnumpy\ndtype\n)\x81", "has a step NEWOBJ, which an archive of images does not need"),
    "an object from outside": (b"X\x01\x00\x00\x00aQ", "has a step BINPERSID"),
    "an extension": (b"\x82\x01", "has a step EXT1"),
    "a call of a list": (b"])R", "calls something that is not a function"),
    "a state for a list": (b"])b", "a step finds a list where it needs a Pending"),
    "a giant text": (b"\x8d" + (2**40).to_bytes(8, "little") + b"abc", "is not a complete pickle"),
    "a giant array of bytes": (b"\x96" + (2**40).to_bytes(8, "little") + b"abc", "is not a complete pickle"),
    "an empty stack": (b"0", "has a step POP"),
    "too few values": (b"a", "a step finds too few values on the stack"),
    "no mark": (b"]t", "a step finds no mark"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_pickle_is_refused_at_once(name: str, tmp_path: Path) -> None:
    steps, problem = FORGED[name]
    (tmp_path / "x.pkl").write_bytes(b"\x80\x05" + steps + b".")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=re.escape(problem)) as caught:
            read_pickle(tmp_path / "x.pkl")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 400


def test_a_memory_that_is_numbered_high_takes_no_more_of_it(tmp_path: Path) -> None:
    """pickle itself would fill 32 GB here."""
    (tmp_path / "x.pkl").write_bytes(b"\x80\x05K\x07r\xff\xff\xff\x7f0j\xff\xff\xff\x7f.".replace(b"0j", b"\x85j"))
    assert read_pickle(tmp_path / "x.pkl") == 7


def test_a_program_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mamllit.data.sources.unpickle.STEPS", 20)
    with pytest.raises(ValueError, match="takes more than 20 steps to read, which an archive of images does not need"):
        read_pickle(written(tmp_path / "x.pkl", list(range(100))))


def test_the_plain_form_of_the_forged_ones_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"\x80\x05" + array_of(b"K\x02\x85") + b".")
    assert read_pickle(tmp_path / "x.pkl").tolist() == [97, 98]
