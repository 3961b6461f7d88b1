"""The hub's conventions, without a network, and the model card."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
import torch
import yaml
from toy_runs import toy_method, toy_run

from mamllit import pretrained
from mamllit.pretrained import read
from mamllit.pretrained.card import card
from mamllit.pretrained.export import export
from mamllit.pretrained.files import Checkpoint

hub = pytest.importorskip("mamllit.pretrained.hub", reason="huggingface_hub is not installed")


def test_a_checkpoint_goes_to_a_folder_and_comes_back(tmp_path: Path) -> None:
    file = export(toy_run(tmp_path / "run"))
    hub.HubCheckpoint(str(file)).save_pretrained(tmp_path / "published")
    written = {path.name: path for path in (tmp_path / "published").iterdir()}
    assert set(written) == {"README.md", "config.json", "model.safetensors"}
    assert json.loads(written["config.json"].read_text()) == {"format": 2, "model_type": "mamllit", "name": "maml_toy_3way"}
    again = hub.HubCheckpoint.from_pretrained(str(tmp_path / "published"))
    assert again.checkpoint == read(file)[0]
    for name, value in toy_method().state_dict().items():
        assert torch.equal(again.method().state_dict()[name], value)


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as the client needs to fetch one file of one repository."""

    file: Path
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        self.asked.append(self.path)
        content = self.file.read_bytes() if self.path.endswith("/model.safetensors") else b""
        self.send_response(200 if content else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header(*("ETag", '"1"') if content else ("X-Error-Code", "EntryNotFound"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *args: object) -> None:
        pass


def test_a_checkpoint_is_fetched_by_the_hub_s_own_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hub, "file", export(toy_run(tmp_path / "run")), raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = "{endpoint}/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template.replace("{endpoint}", address))
    try:
        found = hub.HubCheckpoint.from_pretrained("me/maml-toy", revision="v1", cache_dir=tmp_path / "cache")
    finally:
        server.shutdown()
    assert found.checkpoint.name == "maml_toy_3way"
    assert "/me/maml-toy/resolve/v1/model.safetensors" in Hub.asked


def test_arguments_of_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^from_pretrained does not take steps: the file defines the model$"):
        hub.HubCheckpoint.from_pretrained(str(tmp_path), steps=3)


def test_the_card_says_what_the_file_says(tmp_path: Path) -> None:
    checkpoint = read(export(toy_run(tmp_path / "run")))[0]
    text = card(checkpoint)
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {"library_name": "mamllit", "license": "mit", "tags": ["meta-learning", "few-shot", "MAML"]}
    assert body.startswith("\n# maml_toy_3way\n")
    assert "| paper, 600 | 1 | 1 | transductive | 95.00% ± 0.40% | 98.70% |" in body
    assert "30 of 40 iterations, seed 5, the last checkpoint" in body
    assert "secret" not in body and str(tmp_path) not in body


def test_every_checkpoint_has_a_card() -> None:
    images = ("paper, 600", "inductive", "transductive")
    policies = ("paper, 40", "| after 0 | after 1 |", "mamllit rollout ")
    for name in pretrained.names():
        result = read(name)[0].result
        tested = [entry["protocol"].partition("[")[0] for entry in result["results"].values()]
        assert "standard" in tested or name.startswith("pretrain_"), name
        rows = [f"{entry['episodes']:,} | {entry['shots']} |" for entry in result["results"].values()]
        parts = [f"# {name}", "Licence of the weights: MIT.", *(policies if result["metric"] == "return" else images), *rows]
        for part in parts:
            assert part in card(read(name)[0]), (name, part)


def test_the_card_of_a_policy_has_its_returns_and_how_to_let_it_act() -> None:
    entry = {"protocol": "paper", "shots": 40, "queries": 40, "episodes": 40, "mean": [-40.2, -11.7], "ci95": [4.2, 2.1]}
    result = {"method": "MAML", "metric": "return", "transductive": False, "seed": 0, "commit": None, "steps_done": 50}
    result |= {"steps_asked": 60, "checkpoint": "best", "results": {"paper": entry}, "published": {"paper": {"1": -11.68}}}
    world = {"class_path": "mamllit.rl.Navigation", "init_args": {"horizon": 12}}
    model = {"method": {"class_path": "mamllit.methods.MAML"}, "report_step": 1}
    for given, task in ((world, "goal_x=0.25,goal_y=0.25"), ({"class_path": "mine.World"}, "NAME=VALUE")):
        data = {"class_path": "mamllit.data.ControlDataModule", "init_args": {"world": given}}
        text = card(Checkpoint("walker", model, data, result))
        assert "| paper, 40 | 40 | -40.2 ± 4.2 | -11.7 ± 2.1 |\n| paper, published | 40 |  | -11.68 |" in text
        assert f'mamllit rollout walker --task "{task}" --video before_and_after.gif' in text
        assert "images" not in text
    assert "Nothing was measured." in card(Checkpoint("walker", model, data, {**result, "results": {}}))
