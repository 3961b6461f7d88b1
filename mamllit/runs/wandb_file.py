"""Reads the file that Weights & Biases writes offline, run-ID.wandb, whose own reader is not public."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, FULL, LAST = 32768, 1, 4  # LevelDB's log format, which wandb writes after 7 bytes of its own


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: each in chunks of (checksum, length, kind), none of them across a block's end."""
    data, at, parts = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < 7:  # too short for the head of a chunk
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(parts)  # type: ignore[attr-defined]
            parts = b""


def nested(items: Any) -> dict[str, Any]:
    """The values of a list of items by key; a value of several parts comes as one item per part."""
    values: dict[str, Any] = {}
    for item in items:
        *outer, key = item.nested_key or [item.key]
        inner = values
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[key] = json.loads(item.value_json)
    return values


def contents(file: Path) -> SimpleNamespace:
    """All `records` of a file, and by kind: `run` (name, id, group, tags), `config`, `summary`, `history`, `artifacts`."""
    found = list(records(file))
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    for record in found:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            _merge(config, nested(record.run.config.update))
        elif kind == "config":
            _merge(config, nested(record.config.update))
        elif kind == "summary":
            summary |= nested(record.summary.update)
        elif kind == "history":
            history.append(nested(record.history.item))
    run = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    artifacts = [record.artifact for record in found if record.WhichOneof("record_type") == "artifact"]
    artifacts += [r.request.log_artifact.artifact for r in found if r.request.WhichOneof("request_type") == "log_artifact"]
    return SimpleNamespace(records=found, run=run, config=config, summary=summary, history=history, artifacts=artifacts)


def _merge(config: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _merge(config[key], value)
        else:
            config[key] = value
