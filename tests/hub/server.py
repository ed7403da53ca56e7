"""A Hugging Face Hub in miniature, over real HTTP: the endpoints that huggingface_hub calls to publish and load models.

Written after what its generations (0.36 over requests, 2 over httpx) send. It is no mock of theirs or ours: commits are
atomic, large files go through the LFS protocol, private repositories hide, and faults (an error status, a dropped
connection) happen where a test asks for them.
"""

from __future__ import annotations

import base64
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"
TOKENS = {OWNER: ("me", "write"), READER: ("me", "read"), STRANGER: ("stranger", "write")}
LARGE = (".safetensors", ".bin", ".pt", ".png")  # what a fresh repository's .gitattributes hands to LFS
ID = r"(?P<id>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    """Branches are names of commits; a commit holds all its files."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def add(self, branch: str, files: dict[str, bytes], message: str) -> str:
        oid = sha1(f"{branch} {len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD path" fits `pattern`, `times` times."""

    pattern: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None  # bytes of the request's body, or of the answer's for a download
    times: int = 1


class LocalHub(ThreadingHTTPServer):
    """The server and all that it stores.

    Attributes:
        repositories, objects: by id; large files by their SHA-256.
        part_size: larger files are uploaded in parts of so many bytes.
        faults: see `Fault`.
        requests: "METHOD path" of each that came.
        sent: bytes of large files that were downloaded.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_size = 1 << 30
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def create(self, repo_id: str, private: bool = False, gated: bool = False) -> Repository:
        repository = self.repositories[repo_id] = Repository(private, gated)
        repository.add(
            "main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit"
        )
        return repository

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.branches.get(revision, revision)]

    def fail(self, pattern: str, **what: Any) -> None:
        self.faults.append(Fault(pattern, **what))

    def handle_error(self, *_: Any) -> None:
        """A client that went away is none of our errors."""


@contextmanager
def running() -> Iterator[LocalHub]:
    hub = LocalHub()
    thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class Refusal(Exception):
    def __init__(self, status: int, code: str | None = None, message: str = ""):
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalHub

    def log_message(self, *_: Any) -> None:
        pass

    # -- one request --------------------------------------------------------------------------------------------------

    def answer(self) -> None:
        split = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        request = f"{self.command} {split.path}"
        self.server.requests.append(request)
        fault = next((f for f in self.server.faults if f.times and re.search(f.pattern, request)), None)
        if fault:
            fault.times -= 1
        self.drop_after = fault.drop_after if fault else None
        if fault and fault.drop_after is not None and self.command in ("PUT", "POST"):
            self.rfile.read(fault.drop_after)
            return self.hang_up()
        body = self.read_body()
        if fault and fault.status:
            return self.send(fault.status, {"error": "as the test asked"}, fault.headers)
        try:
            for method, pattern, handle in ROUTES:
                if method == self.command.replace("HEAD", "GET") and (found := re.fullmatch(pattern, split.path)):
                    parts = {name: unquote(part) for name, part in found.groupdict().items() if part is not None}
                    return handle(self, body, **parts)
            raise Refusal(404, None, f"no such endpoint: {request}")
        except Refusal as no:
            headers = {"X-Error-Message": no.message} | ({"X-Error-Code": no.code} if no.code else {})
            self.send(no.status, {"error": no.message}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, status: int, content: Any = b"", headers: dict[str, str] | None = None) -> None:
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        content = content if self.drop_after is None else content[: self.drop_after]
        self.wfile.write(content)
        self.server.sent += len(content) if "/cdn/" in self.path else 0
        if self.drop_after is not None:
            self.wfile.flush()
            self.hang_up()

    # -- who may what -------------------------------------------------------------------------------------------------

    def user(self) -> tuple[str, str] | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        user, repository = self.user(), self.server.repositories.get(repo_id)
        mine = user is not None and repo_id.startswith(f"{user[0]}/")
        if repository is None or (repository.private and not mine):
            raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and user is None:
            raise Refusal(401, None, "Invalid username or password.")
        if write and not (mine and user[1] == "write") and not self.query.get("create_pr"):
            raise Refusal(403, None, f"You don't have the rights to write to {repo_id}")
        return repository

    def commit_of(self, repository: Repository, revision: str) -> str:
        oid = repository.branches.get(revision, revision)
        if oid not in repository.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    # -- the endpoints ------------------------------------------------------------------------------------------------

    def whoami(self, _: bytes) -> None:
        user = self.user()
        if user is None:
            raise Refusal(401, None, "Invalid username or password.")
        self.send(200, {"type": "user", "name": user[0], "orgs": [], "auth": {"accessToken": {"role": user[1]}}})

    def create(self, body: bytes) -> None:
        asked, user = json.loads(body), self.user()
        if user is None:
            raise Refusal(401, None, "Invalid username or password.")
        repo_id = f"{asked.get('organization') or user[0]}/{asked['name']}"
        if not repo_id.startswith(f"{user[0]}/") or user[1] != "write":
            raise Refusal(403, None, f'You don\'t have the rights to create a model under the namespace "{repo_id}"')
        content = {"url": f"{self.server.url}/{repo_id}", "name": repo_id}
        if repo_id in self.server.repositories:
            return self.send(409, {"error": "You already created this model repo", **content})
        self.server.create(repo_id, bool(asked.get("private")) or asked.get("visibility") == "private")
        self.send(200, content)

    def branch(self, body: bytes, id: str, rev: str) -> None:
        repository = self.repository(id, write=True)
        if rev in repository.branches:
            raise Refusal(409, None, f"Reference already exists: {rev}")
        repository.branches[rev] = self.commit_of(repository, json.loads(body or b"{}").get("startingPoint") or "main")
        self.send(200, {})

    def validate(self, body: bytes) -> None:
        errors = metadata_errors(json.loads(body)["content"])
        self.send(400 if errors else 200, {"errors": [{"message": e} for e in errors], "warnings": []})

    def info(self, _: bytes, id: str, rev: str = "main") -> None:
        repository = self.repository(id)
        oid = self.commit_of(repository, rev)
        files = [{"rfilename": path} for path in repository.commits[oid]]
        self.send(
            200, {"id": id, "modelId": id, "sha": oid, "private": repository.private, "siblings": files, "tags": []}
        )

    def tree(self, _: bytes, id: str, rev: str, path: str = "") -> None:
        repository = self.repository(id)
        files = repository.commits[self.commit_of(repository, rev)]
        self.send(200, [entry(name, content) for name, content in files.items() if name.startswith(path)])

    def paths_info(self, body: bytes, id: str, rev: str) -> None:
        repository = self.repository(id)
        files = repository.commits[self.commit_of(repository, rev)]
        if "json" in (self.headers.get("Content-Type") or ""):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode())["paths"]
        self.send(200, [entry(name, files[name]) for name in paths if name in files])

    def preupload(self, body: bytes, id: str, rev: str) -> None:
        repository = self.repository(id, write=True)
        there = repository.commits[self.commit_of(repository, rev)]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": content_id(file["path"], there[file["path"]]) if file["path"] in there else None,
            }
            for file in json.loads(body)["files"]
        ]
        self.send(200, {"files": files})

    def lfs_batch(self, body: bytes, id: str) -> None:
        batch, objects = json.loads(body), []
        self.repository(id, write="ref" in batch)  # without one it is for a pull request, which readers may open
        for asked in batch["objects"]:
            oid, size, url = asked["oid"], asked["size"], self.server.url
            actions = {
                "upload": {"href": f"{url}/lfs/{oid}", "header": {}},
                "verify": {"href": f"{url}/lfs-verify/{oid}"},
            }
            if size > self.server.part_size:
                count = -(-size // self.server.part_size)
                actions["upload"]["header"] = {str(k): f"{url}/lfs/{oid}/{k}" for k in range(1, count + 1)}
                actions["upload"]["header"]["chunk_size"] = str(self.server.part_size)
            objects.append(asked if oid in self.server.objects else {**asked, "actions": actions})
        self.send(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if sha256(body).hexdigest() != oid:
            raise Refusal(400, None, "content does not fit its digest")
        self.server.objects[oid] = body
        self.send(200)

    def lfs_part(self, body: bytes, oid: str, part: str) -> None:
        self.server.parts[oid, int(part)] = body
        self.send(200, headers={"ETag": f'"{sha1(body).hexdigest()}"'})

    def lfs_complete(self, body: bytes, oid: str) -> None:
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        self.lfs_put(b"".join(self.server.parts.get((oid, number), b"") for number in numbers), oid)

    def lfs_verify(self, _: bytes, oid: str) -> None:
        self.send(200 if oid in self.server.objects else 404, {})

    def commit(self, body: bytes, id: str, rev: str) -> None:
        repository = self.repository(id, write=True)
        files = dict(repository.commits[self.commit_of(repository, rev)])
        message = ""
        for line in body.splitlines():
            kind, value = (operation := json.loads(line))["key"], operation["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise Refusal(400, None, f"{value['path']} was never uploaded")
                files[value["path"]] = self.server.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        branch, pull = rev, None
        if self.query.get("create_pr"):
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
            branch, pull = f"refs/pr/{number}", f"{self.server.url}/{id}/discussions/{number}"
        oid = repository.add(branch, files, message)
        content = {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{id}/commit/{oid}"}
        self.send(200, {**content, "hookOutput": "", "pullRequestUrl": pull})

    def resolve(self, _: bytes, id: str, rev: str, path: str) -> None:
        repository = self.repository(id)
        oid = self.commit_of(repository, rev)
        if repository.gated:
            raise Refusal(403, "GatedRepo", f"Access to model {id} is restricted")
        if path not in repository.commits[oid]:
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": oid}
            return self.send(404, {"error": "Entry not found"}, headers)
        content = repository.commits[oid][path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{entry(path, content)["oid"]}"', "Accept-Ranges": "bytes"}
        if not path.endswith(LARGE):
            return self.send_range(content, headers)
        digest = sha256(content).hexdigest()
        linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        # Absolute, as the real one redirects to its storage: clients do not follow it when they ask for the head.
        self.send(
            302,
            b"",
            {**headers, **linked, "Location": f"{self.server.url.replace('127.0.0.1', 'localhost')}/cdn/{digest}"},
        )

    def cdn(self, _: bytes, oid: str) -> None:
        if self.headers.get("Authorization"):
            raise Refusal(400, None, "tokens must not leave the Hub")
        self.send_range(self.server.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def send_range(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return self.send(200, content, headers)
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.send(206, content[first : last + 1], headers)


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as `tree` lists it."""
    shown = {"type": "file", "path": path, "size": len(content)}
    if path.endswith(LARGE):
        digest = sha256(content).hexdigest()
        content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
        shown["lfs"] = {"oid": digest, "size": shown["size"], "pointerSize": len(content)}
    return {**shown, "oid": sha1(f"blob {len(content)}\0".encode() + content).hexdigest()}


def content_id(path: str, content: bytes) -> str:
    shown = entry(path, content)
    return shown["lfs"]["oid"] if "lfs" in shown else shown["oid"]


def metadata_errors(card: str) -> list[str]:
    """The rules that the Hub documents for a model card's metadata (hub-docs: modelcard.md, model-cards.md)."""
    block = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    try:
        data = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        return [f"no YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata must be a mapping"]
    name = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
    errors = []
    for key in ("base_model", "datasets"):
        values = data.get(key) or []
        for value in [values] if isinstance(values, str) else values:
            if not isinstance(value, str) or not name.fullmatch(value):
                errors.append(f'"{key}" with value "{value}" is not valid.')
    if data.get("base_model_relation") not in (None, "adapter", "merge", "quantized", "finetune"):
        errors.append('"base_model_relation" is not valid.')
    if "license" in data and not re.fullmatch(r"[a-z0-9.-]+", str(data["license"])):
        errors.append('"license" is not valid.')
    for index in data.get("model-index") or []:
        for result in index.get("results") or [{}]:
            required = [
                index.get("name"),
                (result.get("task") or {}).get("type"),
                (result.get("dataset") or {}).get("type"),
                (result.get("dataset") or {}).get("name"),
            ]
            metrics = result.get("metrics") or [{}]
            if not all(required) or not all(metric.get("type") and "value" in metric for metric in metrics):
                errors.append('"model-index" lacks what its results require.')
    return errors


ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", rf"/api/models/{ID}/branch/(?P<rev>[^/]+)", Handler.branch),
    ("POST", rf"/api/models/{ID}/preupload/(?P<rev>[^/]+)", Handler.preupload),
    ("POST", rf"/api/models/{ID}/commit/(?P<rev>[^/]+)", Handler.commit),
    ("POST", rf"/api/models/{ID}/paths-info/(?P<rev>[^/]+)", Handler.paths_info),
    ("GET", rf"/api/models/{ID}", Handler.info),
    ("GET", rf"/api/models/{ID}/revision/(?P<rev>[^/]+)", Handler.info),
    ("GET", rf"/api/models/{ID}/tree/(?P<rev>[^/]+)(/(?P<path>.+))?", Handler.tree),
    ("GET", rf"/{ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", Handler.resolve),
    ("POST", rf"/{ID}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>\w{64})", Handler.lfs_put),
    ("POST", r"/lfs/(?P<oid>\w{64})", Handler.lfs_complete),
    ("PUT", r"/lfs/(?P<oid>\w{64})/(?P<part>\d+)", Handler.lfs_part),
    ("POST", r"/lfs-verify/(?P<oid>\w{64})", Handler.lfs_verify),
    ("GET", r"/cdn/(?P<oid>\w{64})", Handler.cdn),
]
