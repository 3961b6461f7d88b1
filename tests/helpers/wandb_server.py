"""A stand-in for the W&B server: it lets a run begin, and knows one sweep, a grid, whose runs it hands out to agents."""

import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

SWEEP, ENTITY, PROJECT = "sweep001", "nobody", "mamllit"


class Server:
    """Serves on a free port of this machine while inside `with`; `asked` lists the GraphQL operations that came."""

    def __init__(self, most: int) -> None:
        self.most, self.config, self.asked = most, "", []  # type: ignore[var-annotated]
        self.waiting: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                try:
                    body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                except ValueError:  # usage statistics and the like
                    body = {}
                answer = json.dumps({"data": server.answer(body.get("query", ""), body.get("variables") or {})}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> "Server":
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *arguments: Any) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(query.strip().split("(")[0].split("{")[0].strip())
        if "upsertSweep" in query:
            self.config = variables["config"]
            self._fill()
            project = {"id": "project", "name": PROJECT, "entity": {"id": "entity", "name": ENTITY}}
            return {"upsertSweep": {"sweep": {"id": SWEEP, "name": SWEEP, "project": project}, "configValidationWarnings": []}}
        if "upsertBucket" in query:
            project = {"id": "project", "name": PROJECT, "entity": {"id": "entity", "name": ENTITY}}
            run = {"id": "run", "name": variables.get("name"), "displayName": variables.get("displayName"), "project": project}
            nothing = {"config": "{}", "summaryMetrics": "{}", "historyLineCount": 0, "logLineCount": 0, "eventsLineCount": 0}
            return {"upsertBucket": {"bucket": run | nothing, "inserted": True}}
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "agentHeartbeat" in query:
            running = json.loads(variables.get("runState") or "{}")  # one at a time, and none left when it is told to exit
            commands = [] if running else [self.waiting.pop(0) if self.waiting else {"type": "exit"}]
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        if "sweep(" in query:
            sweep = {
                "id": SWEEP,
                "name": SWEEP,
                "method": "grid",
                "state": "RUNNING",
                "config": self.config,
                "runs": {"edges": []},
            }
            return {"project": {"sweep": sweep}}
        viewer = {"id": "viewer", "username": ENTITY, "entity": ENTITY, "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": {"cliVersionInfo": {"max_cli_version": "9.9.9"}}}

    def _fill(self) -> None:
        parameters = yaml.safe_load(self.config)["parameters"]
        grid = itertools.product(*([(name, v) for v in spec["values"]] for name, spec in parameters.items()))
        for number, values in zip(range(self.most), grid, strict=False):
            args = {name: {"value": value} for name, value in values}
            self.waiting.append({"type": "run", "program": "mamllit", "run_id": f"trial{number}", "args": args})
