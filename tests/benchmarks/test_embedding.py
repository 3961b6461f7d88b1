"""The benchmark of own images by pretrained features runs."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("timm", reason="needs the extra timm")


def test_the_script_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments" / "benchmarks"))
    import embedding

    found = embedding.main(["--quick", "--threads", "1"])
    sys.modules.pop("embedding")
    assert min(found.values()) > 0
    printed = capsys.readouterr().out
    assert "test_resnet, 1 threads, 1 turns of 5 images, CPU time:" in printed
    assert "25 support and 10 query images, adapted, estimated and predicted:" in printed
