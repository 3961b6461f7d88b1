"""Files that are whole or not there."""

import errno
import os
import stat
from pathlib import Path

import pytest

from mamllit.runs import durable


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for content in ("one", b"two"):
        durable.write(tmp_path / "new" / "file", content)
    assert (tmp_path / "new" / "file").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_the_bytes_are_on_the_disk_before_the_file_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a power cut leaves the old file or the new one: content, then name, then the folder that holds the name."""
    done = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: (done.append(name), original(*a))[1])
    durable.write(tmp_path / "file", "content")
    assert done == ["fsync", "replace", "fsync"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.write(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        durable.write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_keep_goes_elsewhere_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").touch()  # a file where the folder should be
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    with pytest.warns(UserWarning, match=r"cannot write .*run/result\.json \(.*\); it is kept as .*temporary/mamllit-"):
        path = durable.keep(tmp_path / "run" / "result.json", "numbers")
    assert path is not None and path.read_text() == "numbers"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with pytest.warns(UserWarning, match="it is kept as"):
        assert durable.keep(tmp_path / "run" / "episodes.csv", "more") == path.with_name("episodes.csv")


def test_keep_prints_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(durable, "write", full)
    with pytest.warns(UserWarning, match=r"its content is printed above"):
        assert durable.keep(tmp_path / "result.json", "numbers") is None
    assert "result.json:\nnumbers" in capsys.readouterr().out


def test_refusal_says_why(tmp_path: Path) -> None:
    assert durable.refusal(tmp_path / "new") is None
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    assert durable.refusal(tmp_path / "file" / "run") == "Not a directory"


def test_a_place_that_cannot_be_written_is_told_with_the_option_that_names_another(tmp_path: Path) -> None:
    durable.check_place(tmp_path / "new" / "a.gif", "--video")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    for place, reason in ((tmp_path / "file" / "a.gif", "File exists"), (tmp_path / "new", "it is a folder")):
        with pytest.raises(OSError, match=rf"^cannot write {place} \({reason}\); name another file with --video$"):
            durable.check_place(place, "--video")


# ---- a folder that others can write to -------------------------------------------------------------------------------


def test_nobody_chooses_where_the_bytes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link with the name of the temporary file, had it been guessed, is neither followed nor replaced."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)
    (tmp_path / f".file.{'0' * 16}.part").symlink_to(victim)
    with pytest.raises(FileExistsError):
        durable.write(tmp_path / "file", "theirs")
    assert victim.read_text() == "mine"


def test_temporary_names_differ_and_permissions_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[tuple[str, int]] = []
    original = os.replace

    def replace(part: Path, path: Path) -> None:
        parts.append((part.name, stat.S_IMODE(part.stat().st_mode)))
        original(part, path)

    monkeypatch.setattr(os, "replace", replace)
    before = os.umask(0o077)
    try:
        for _ in range(2):
            durable.write(tmp_path / "file", "content")
        durable.link(tmp_path / "file", tmp_path / "other")
    finally:
        os.umask(before)
    assert len({name for name, _ in parts}) == 3
    assert [mode for _, mode in parts] == [0o600] * 3


def test_link_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "last").write_text("new")
    (tmp_path / "previous").symlink_to(tmp_path / "victim")
    durable.link(tmp_path / "last", tmp_path / "previous")
    assert (tmp_path / "previous").read_text() == "new" and not (tmp_path / "previous").is_symlink()
    assert (tmp_path / "victim").read_text() == "mine"


def test_clear_removes_what_a_killed_write_left_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            durable.write(tmp_path / "last.ckpt", "half")
    for name in ("data.bin.part", ".notes.part", "last.ckpt"):
        (tmp_path / name).touch()
    assert len(list(tmp_path.iterdir())) == 4
    durable.clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes.part", "data.bin.part", "last.ckpt"]


@pytest.mark.parametrize("mode", ["ab", "wb", "a"])
def test_a_known_name_is_opened_only_where_it_is_a_plain_file(mode: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "nowhere"):
        with pytest.raises(PermissionError, match=rf"{name} is a link to .*, which is not followed: remove it"):
            durable.open_own(tmp_path / name, mode)
    with pytest.raises(OSError, match="No such device or address"):  # nobody reads from it, and it is not waited for
        durable.open_own(tmp_path / "pipe", mode)
    assert victim.read_text() == "mine" and not (tmp_path / "missing").exists()
    with durable.open_own(victim, mode) as file:
        file.write("x" if mode == "a" else b"x")
    assert victim.read_text() == ("x" if mode == "wb" else "minex")


def test_another_users_file_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part").write_text("theirs")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match="part is not a regular file of yours, so it is not written to: remove it"):
        durable.open_own(tmp_path / "part", "wb")
    assert (tmp_path / "part").read_text() == "theirs"
    durable.open_own(tmp_path / "part", "a", shared=True).close()


def test_refusal_leaves_a_link_alone(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / f".probe-{os.getpid()}").symlink_to(tmp_path / "victim")
    assert durable.refusal(tmp_path) is None
    assert (tmp_path / "victim").read_text() == "mine"
