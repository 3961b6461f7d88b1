"""Fetches one file over HTTP: resumed where it broke off, checked, and put in place complete or not at all."""

import base64
import binascii
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from mamllit.runs import durable

CHUNK = 2**18  # bytes


def fetch(url: str, path: str | Path, md5: str | None, *, timeout: float = 30.0, progress: bool = True) -> Path:
    """Download `url` to `path`, unless it is there already.

    The bytes go to `path.part`, which takes the name `path` once its checksum is right. A `.part` left by an earlier
    attempt is continued if the server supports ranges, else begun anew. One process at a time: two that write the
    same `.part` spoil it, which the checksum then reports.

    Args:
        url: the address.
        path: where the file shall lie; its parents are made.
        md5: hexadecimal MD5 of the whole file. None where it is not known: then the one counts that the server sends along
            (`Content-MD5`, as Zenodo does), if any, and the file's own is recorded in `path.md5` for `check_recorded`.
        timeout: seconds without an answer after which the connection counts as broken.
        progress: show a bar (on a terminal only).

    Returns:
        `path`.

    Raises:
        RuntimeError: if the server cannot be reached, refuses, breaks off, or sends something else than expected, or if
            `path` holds another file; the message names the URL and what to do.
        OSError: if `path` cannot be written.
    """
    path = Path(path)
    by_hand = f"Or put the file at {path} by hand."
    if path.exists():
        if md5 is not None and (found := md5_of(path)) != md5:
            raise RuntimeError(
                f"{path} exists but is not the file from {url}: its md5 is {found}, expected {md5}. "
                "Delete it to download it again."
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    resumed, announced = _download(url, part, timeout, progress, by_hand)
    found, expected = md5_of(part), md5 or announced
    if expected not in (None, found) and resumed:  # the old part may come from another version of the file
        part.unlink()
        _, announced = _download(url, part, timeout, progress, by_hand)
        found, expected = md5_of(part), md5 or announced
    if expected not in (None, found):
        size = part.stat().st_size
        part.unlink()
        raise RuntimeError(
            f"{url} sent a file with the wrong checksum: {size} bytes with md5 {found}, expected {expected}. It was "
            f"deleted. Try again; if it happens twice, the file at that address has changed. {by_hand}"
        )
    if md5 is None:
        durable.write(_record(path), f"{found}  {path.name}\n")  # as md5sum writes it
    os.replace(part, path)
    return path


def check_recorded(path: str | Path) -> None:
    """Compare a file with the checksum that `fetch` recorded beside it; one without a record passes.

    Raises:
        ValueError: if the file has changed since it was downloaded.
    """
    path = Path(path)
    if _record(path).exists():
        recorded, found = _record(path).read_text(encoding="utf-8").split(" ")[0], md5_of(path)
        if found != recorded:
            raise ValueError(
                f"{path} has changed since it was downloaded: its md5 is {found} and was {recorded}. Delete it to "
                f"download it again, or delete {_record(path)} if the change is intended"
            )


def md5_of(path: str | Path) -> str:
    """Hexadecimal MD5 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".md5")


def _announced(headers: Message) -> str | None:
    """The MD5 that a server sends along, as hexadecimal; it comes in base64 (RFC 1864), or so already (Zenodo's software)."""
    text = (headers.get("Content-MD5") or "").removeprefix("md5:")
    try:
        digest = bytes.fromhex(text) if len(text) == 32 else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return digest.hex() if len(digest) == 16 else None


def _download(url: str, part: Path, timeout: float, progress: bool, by_hand: str) -> tuple[bool, str | None]:
    """Fill `part` from `url`; whether bytes that were there before are still in it, and the MD5 that the server sent."""
    have = 0
    if part.is_symlink() or part.exists():
        with durable.open_own(part, "ab") as file:
            have = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing beyond what is here: the checksum tells whether it is the file
            return True, None
        raise RuntimeError(
            f"cannot download {url}: the server answered {error.code} {error.reason}. "
            f"Check that the address still exists. {by_hand}"
        ) from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise RuntimeError(
            f"cannot download {url}: no connection ({getattr(error, 'reason', error)!s}). Check the network. {by_hand}"
        ) from error
    with response:
        resumed = have > 0 and response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise RuntimeError(
                f"cannot resume {url}: asked for the bytes from {have} on, but the server sent "
                f"{response.headers.get('Content-Range')!r}. Delete {part} and try again. {by_hand}"
            )
        announced = None if resumed else _announced(response.headers)  # with a range it may be that of the range
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        received = start
        with (
            durable.open_own(part, "ab" if resumed else "wb") as file,
            tqdm(
                total=total,
                initial=start,
                desc=part.stem,
                unit="B",
                unit_scale=True,
                disable=None if progress else True,
            ) as bar,
        ):
            while True:
                try:
                    chunk = response.read(CHUNK)
                    broken = None
                except (OSError, http.client.HTTPException) as error:
                    chunk, broken = b"", error
                if not chunk:
                    break
                file.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
    if broken is not None or (total is not None and received < total):
        raise RuntimeError(
            f"the download of {url} stopped after {received} of {total or 'an unknown number of'} bytes"
            f"{f' ({broken})' if broken else ''}. Try again: it resumes from {part}. {by_hand}"
        ) from broken
    return resumed, announced
