"""A stand-in for the Hub's HTTP interface: what creating a model repository, uploading to it and downloading from it ask for.

Written after the client's requests (huggingface_hub: `create_repo`, `upload_folder`, `model_info`, `hf_hub_download`). Keeps
every commit, wants the token for writing, and notes each request.
"""

import base64
import fnmatch
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_standin"
LFS_PATTERNS = ("*.safetensors", "*.png")


class HubServer(ThreadingHTTPServer):
    """State: `repos` maps a name, of a model or a Space, to its commits, oldest first, each `{path: content}`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.kinds: dict[str, str] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lock = threading.Lock()

    def files(self, repo_id: str) -> dict[str, bytes]:
        """Content of the latest commit."""
        return self.repos[repo_id][-1]


@contextmanager
def hub_server():
    """Runs a server on a free port of the loopback interface."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def upload_to(server: HubServer, monkeypatch) -> None:
    """Lets this process upload to a server, with the token. What downloads is bound to the Hub when its client is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def commit_hash(repo_id: str, number: int) -> str:
    return hashlib.sha1(f"{repo_id}@{number}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        with self.server.lock:
            self._dispatch(
                {
                    r"/api/repos/create": self._create,
                    r"/api/validate-yaml": lambda body: self._json({"errors": [], "warnings": []}),
                    r"/api/(?:models|spaces)/(?P<repo_id>[^/]+/[^/]+)/preupload/main": self._preupload,
                    r"/(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch": self._lfs_batch,
                    r"/api/(?:models|spaces)/(?P<repo_id>[^/]+/[^/]+)/commit/main": self._commit,
                },
                body,
            )

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._dispatch({r"/lfs/(?P<oid>[0-9a-f]{64})": self._lfs_upload}, body)

    def do_GET(self):
        with self.server.lock:
            self._dispatch(
                {
                    r"/api/(?:models|spaces)/(?P<repo_id>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?": self._info,
                    r"/api/(?:models|spaces)/(?P<repo_id>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)": self._tree,
                    r"/(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)": self._resolve,
                }
            )

    do_HEAD = do_GET

    def _create(self, body: bytes):
        request = json.loads(body)
        repo_id = f"{request['organization']}/{request['name']}"
        if repo_id in self.server.repos:
            return self._json({"error": "You already created this model repo", "url": f"{self.server.endpoint}/{repo_id}"}, 409)
        self.server.repos[repo_id] = [{".gitattributes": b""}]
        self.server.kinds[repo_id] = request.get("type") or "model"
        self.server.private[repo_id] = request.get("visibility") == "private" or bool(request.get("private"))
        place = f"spaces/{repo_id}" if self.server.kinds[repo_id] == "space" else repo_id
        self._json({"url": f"{self.server.endpoint}/{place}"})

    def _preupload(self, body: bytes, repo_id: str):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if any(fnmatch.fnmatch(file["path"], pattern) for pattern in LFS_PATTERNS) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _lfs_batch(self, body: bytes, repo_id: str):
        objects = [
            {
                **file,
                "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{file['oid']}"}},
            }
            for file in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects}, content_type="application/vnd.git-lfs+json")

    def _lfs_upload(self, body: bytes, oid: str):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._json({"error": "content does not match its hash"}, 400)
        self.server.lfs_objects[oid] = body
        self._json({})

    def _commit(self, body: bytes, repo_id: str):
        files = dict(self.server.files(repo_id))
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs_objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        self.server.repos[repo_id].append(files)
        number = len(self.server.repos[repo_id]) - 1
        oid = commit_hash(repo_id, number)
        self._json({"commitUrl": f"{self.server.endpoint}/{repo_id}/commit/{oid}", "commitOid": oid, "success": True})

    def _info(self, repo_id: str, revision: str | None):
        number = self._commit_number(repo_id, revision or "main")
        if number is None:
            return self._not_found("RepoNotFound")
        siblings = [{"rfilename": path} for path in self.server.repos[repo_id][number]]
        self._json({"id": repo_id, "sha": commit_hash(repo_id, number), "siblings": siblings, "tags": [], "private": False})

    def _tree(self, repo_id: str, revision: str):
        number = self._commit_number(repo_id, revision)
        if number is None:
            return self._not_found("RepoNotFound")
        entries = []
        for path, content in self.server.repos[repo_id][number].items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if any(fnmatch.fnmatch(path, pattern) for pattern in LFS_PATTERNS):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self._json(entries)

    def _resolve(self, repo_id: str, revision: str, path: str):
        number = self._commit_number(repo_id, revision)
        if number is None:
            return self._not_found("RepoNotFound")
        content = self.server.repos[repo_id][number].get(unquote(path))
        if content is None:
            return self._not_found("EntryNotFound")
        headers = {"X-Repo-Commit": commit_hash(repo_id, number), "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self._send(200, content, "application/octet-stream", headers)

    def _commit_number(self, repo_id: str, revision: str) -> int | None:
        commits = self.server.repos.get(repo_id, [])
        names = {commit_hash(repo_id, number): number for number in range(len(commits))}
        if commits:
            names["main"] = len(commits) - 1
        return names.get(revision)

    def _dispatch(self, routes: dict, *arguments):
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        for pattern, answer in routes.items():
            match = re.fullmatch(pattern, path)
            if match:
                return answer(*arguments, **match.groupdict())
        self._json({"error": f"the stand-in does not know {self.command} {path}"}, 501)

    def _not_found(self, code: str):
        self._send(404, b"{}", "application/json", {"X-Error-Code": code})

    def _json(self, content, status: int = 200, content_type: str = "application/json"):
        self._send(status, json.dumps(content).encode(), content_type, {})

    def _send(self, status: int, content: bytes, content_type: str, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass
