"""A Hugging Face hub in memory, as far as uploading to it and downloading from it need one.

Each commit is a whole tree of files. All uploads are asked for inside the commit, none by LFS.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """Repositories of files; `branches[repository][branch]` is the name of a commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, Files] = {}
        self.asked: list[str] = []
        """Paths of files that were downloaded."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository: str, branch: str, files: Files) -> str:
        """Add `files` to what a branch holds, as a new commit; return its name."""
        branches = self.branches.setdefault(repository, {})
        tree = self.commits.get(branches.get(branch, ""), {}) | files
        name = hashlib.sha1(repr((repository, branch, sorted(tree.items()))).encode()).hexdigest()
        self.commits[name], branches[branch] = tree, name
        return name


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Yield a hub that answers until the block ends."""
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.commit(name, "main", {})
            return self._send(200, {"url": f"{self.server.address}/{name}"})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        name, verb, branch = re.fullmatch(r"/api/models/(.+?)/(preupload|commit|branch)/(.+)", path).groups()  # pyright: ignore
        if verb == "branch":
            branches = self.server.branches[name]
            branches.setdefault(branch, branches["main"])
            return self._send(200, {})
        if verb == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._send(200, {"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        commit = self.server.commit(name, branch, files)
        url = f"{self.server.address}/{name}/commit/{commit}"
        return self._send(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def _answer(self) -> None:
        path = self.path.split("?")[0]
        api = re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/(.+))?", path)
        if api:
            name, verb, revision = api.groups()
            tree = self._tree(name, revision or "main")
            if tree is None:
                return None
            commit, files = tree
            if verb == "tree":
                return self._send(
                    200,
                    [
                        {
                            "type": "file",
                            "path": path,
                            "size": len(content),
                            "oid": hashlib.sha1(content).hexdigest(),
                        }
                        for path, content in files.items()
                    ],
                )
            siblings = [{"rfilename": path} for path in files]
            return self._send(200, {"id": name, "sha": commit, "siblings": siblings, "tags": []})
        name, revision, file = re.fullmatch(r"/(.+?)/resolve/(.+?)/(.+)", path).groups()  # pyright: ignore
        tree = self._tree(name, revision)
        if tree is None:
            return None
        commit, files = tree
        if file not in files:
            return self._send(404, {"error": "no entry"}, {"X-Error-Code": "EntryNotFound"})
        self.server.asked.append(file)
        etag = hashlib.sha1(files[file]).hexdigest()
        return self._send(200, files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _tree(self, name: str, revision: str) -> tuple[str, Files] | None:
        branches = self.server.branches.get(name)
        commit = None if branches is None else branches.get(revision, revision)
        if commit in self.server.commits:
            return commit, self.server.commits[commit]
        kind = "Repo" if branches is None else "Revision"
        self._send(404, {"error": f"{kind} not found"}, {"X-Error-Code": f"{kind}NotFound"})
        return None

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
