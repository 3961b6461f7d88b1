"""Pickles of arrays are read, in every protocol and from both Pythons; pickles with code in them are refused unrun."""

import os
import pickle
import subprocess
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
    with pytest.raises(ValueError, match=r"x.pkl asks for \w+.system, which an archive of images has no need of") as caught:
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
    with pytest.raises(ValueError, match=r"asks for the encoding 'rot_13'; only 'latin1' is read"):
        read_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps(ARRAY)[:-20]], ids=["empty", "text", "truncated"])
def test_what_is_no_whole_pickle_is_said_so(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=r"x.pkl is not a whole pickle \("):
        read_pickle(tmp_path / "x.pkl")


def test_more_than_memory_holds_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("mamllit.data.sources.unpickle._ArraysOnly.find_class", too_much)
    with pytest.raises(ValueError, match="holds more than fits into memory, or is damaged"):
        read_pickle(written(tmp_path / "x.pkl", ARRAY))


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "x.pkl")
