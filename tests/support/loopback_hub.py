"""A Hugging Face hub on loopback, for the real client `huggingface_hub`.

It answers what the client asks for when it downloads: facts about a
repository, the list of its files, and files, in whole or from a byte on.

  with LoopbackHub() as hub, hub.in_use(cache_folder):
    hub.commit("models/acme/tiny", {"config.json": b"{}"})
    huggingface_hub.hf_hub_download("acme/tiny", "config.json")
"""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import re
import threading
import urllib.parse
from unittest import mock

import huggingface_hub
from huggingface_hub import constants

MAIN = "main"
# Files that the hub keeps outside git: their ETag is a SHA-256.
LARGE = (".safetensors", ".parquet", ".bin")


@dataclasses.dataclass
class Repo:
  """A repository.

  Attributes:
    commits: the files of each commit, by its hash, the oldest first.
    revisions: hashes by the names of branches and tags.
    is_gated: whether only `TOKEN` may read files.
  """

  commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
  revisions: dict[str, str] = dataclasses.field(default_factory=dict)
  is_gated: bool = False

  def find(self, revision):
    """The commit that a branch, a tag or a hash names; None without one."""
    commit = self.revisions.get(revision, revision)
    return commit if commit in self.commits else None


@dataclasses.dataclass(frozen=True)
class Request:
  """A request that came in; `headers` has lower-case names."""

  method: str
  path: str
  headers: dict[str, str]
  body: bytes = b""


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the hub answers."""

  status: int
  body: bytes = b""
  headers: dict[str, str] = dataclasses.field(default_factory=dict)


def as_json(value, status=200):
  """An answer that is JSON."""
  body = json.dumps(value).encode()
  return Answer(status, body, {"Content-Type": "application/json"})


def refused(status, code):
  """An answer with an error code of the hub."""
  return Answer(status, b"", {"X-Error-Code": code, "X-Error-Message": code})


def git_hash(content):
  """The hash that git gives a file."""
  return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content):
  """The hash that the hub gives a large file."""
  return hashlib.sha256(content).hexdigest()


def is_large(name):
  """Whether the hub keeps a file outside git."""
  return name.endswith(LARGE)


class LoopbackHub:
  """The hub; `with` starts and stops its server.

  Attributes:
    url: its address, without a slash at the end.
    repos: by "models/ORG/NAME" or "datasets/ORG/NAME".
    requests: what came in, the oldest first.
    cuts: by the name of a file, after how many bytes of each of the next
      answers the connection is cut.
    contents: by the name of a file, what is sent in its place.
  """

  TOKEN = "hf_let_me_in"

  def __init__(self):
    self.repos: dict[str, Repo] = {}
    self.requests: list[Request] = []
    self.cuts: dict[str, list[int]] = {}
    self.contents: dict[str, bytes] = {}
    # (methods, path, method of this class): the first that fits answers.
    self.routes = [
      ("GET", r"/api/(?P<repo>\w+/[^/]+/[^/]+)"
       r"(/revision/(?P<revision>[^/]+))?", self.describe),
      ("GET", r"/api/(?P<repo>\w+/[^/]+/[^/]+)/tree/(?P<revision>[^/]+)",
       self.list_files),
      ("GET HEAD", r"/(?P<repo>(datasets/)?[^/]+/[^/]+)"
       r"/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self.send_file),
    ]  # fmt: skip

  def commit(self, name, files, revision=MAIN):
    """Adds a commit with these files, and no others; its hash."""
    repo = self.repos.setdefault(name, Repo())
    listing = {path: git_hash(content) for path, content in files.items()}
    text = json.dumps([name, len(repo.commits), listing])
    commit = hashlib.sha1(text.encode()).hexdigest()
    repo.commits[commit] = dict(files)
    repo.revisions[revision] = commit
    return commit

  def commit_folder(self, name, folder):
    """Adds a commit with the files of a folder; its hash."""
    folder = pathlib.Path(folder)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return self.commit(
      name, {str(p.relative_to(folder)): p.read_bytes() for p in paths}
    )

  def downloads(self):
    """Names of the files that were sent, in order, with repetitions."""
    found = [
      re.fullmatch(r"/.+/resolve/[^/]+/(.+)", urllib.parse.unquote(r.path))
      for r in self.requests
      if r.method == "GET"
    ]
    return [match.group(1) for match in found if match]

  # Answers.

  def answer(self, request):
    """Answers a request."""
    self.requests.append(request)
    path = request.path.partition("?")[0]
    for methods, pattern, method in self.routes:
      match = re.fullmatch(pattern, path)
      if match and request.method in methods.split():
        parts = match.groupdict()
        decoded = {k: v and urllib.parse.unquote(v) for k, v in parts.items()}
        return method(request, **decoded)
    return Answer(404)

  def find(self, name, revision):
    """(repository, commit) that a request names, or an answer with an error."""
    repo = self.repos.get(name)
    if repo is None:
      return refused(401, "RepoNotFound")
    commit = repo.find(revision or MAIN)
    if commit is None:
      return refused(404, "RevisionNotFound")
    return repo, commit

  def describe(self, request, repo, revision=None):
    """Facts about a repository."""
    found = self.find(repo, revision)
    if isinstance(found, Answer):
      return found
    described, commit = found
    siblings = []
    for name, content in sorted(described.commits[commit].items()):
      sibling = {"rfilename": name}
      if "blobs=" in request.path:
        sibling |= {"size": len(content), "blobId": git_hash(content)}
        if is_large(name):
          sibling["lfs"] = {"sha256": sha256(content), "size": len(content)}
          sibling["lfs"]["pointerSize"] = 1
      siblings.append(sibling)
    return as_json(
      {
        "id": repo.partition("/")[2],
        "sha": commit,
        "private": False,
        "gated": "manual" if described.is_gated else False,
        "tags": [],
        "siblings": siblings,
      }
    )

  def list_files(self, request, repo, revision):
    """The files of a commit."""
    found = self.find(repo, revision)
    if isinstance(found, Answer):
      return found
    described, commit = found
    entries = []
    for name, content in sorted(described.commits[commit].items()):
      entry = {"type": "file", "path": name, "size": len(content)}
      entry["oid"] = git_hash(content)
      if is_large(name):
        entry["lfs"] = {"oid": sha256(content), "size": len(content)}
        entry["lfs"]["pointerSize"] = 1
      entries.append(entry)
    return as_json(entries)

  def fail(self, request):
    """An answer of a hub that is out of order, for a route of its own."""
    return Answer(503)

  def send_file(self, request, repo, revision, file):
    """A file, or its rest from a byte on."""
    name = repo if repo.startswith("datasets/") else f"models/{repo}"
    found = self.find(name, revision)
    if isinstance(found, Answer):
      return found
    described, commit = found
    has_token = request.headers.get("authorization") == f"Bearer {self.TOKEN}"
    if described.is_gated and not has_token:
      return refused(403 if "authorization" in request.headers else 401,
                     "GatedRepo")  # fmt: skip
    headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    content = described.commits[commit].get(file)
    if content is None:
      return dataclasses.replace(
        refused(404, "EntryNotFound"),
        headers=refused(404, "EntryNotFound").headers | headers,
      )
    headers["ETag"] = f'"{git_hash(content)}"'
    if is_large(file):
      headers["X-Linked-Etag"] = f'"{sha256(content)}"'
      headers["X-Linked-Size"] = str(len(content))
    body = content
    if request.method == "GET":
      body = self.contents.get(file, content)
    begin = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    if not begin:
      return Answer(200, body, headers)
    first = int(begin.group(1))
    headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
    return Answer(206, body[first:], headers)

  # The server.

  def __enter__(self):
    hub = self

    class Handler(http.server.BaseHTTPRequestHandler):
      """Reads requests, and writes the answers of the hub."""

      protocol_version = "HTTP/1.1"
      disable_nagle_algorithm = True

      def handle_request(self):
        """Answers one request."""
        size = int(self.headers.get("Content-Length", 0))
        headers = {k.lower(): v for k, v in self.headers.items()}
        request = Request(
          self.command, self.path, headers, self.rfile.read(size)
        )
        answer = hub.answer(request)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
          self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
          return
        cuts = hub.cuts.get(urllib.parse.unquote(self.path.split("/")[-1]))
        if cuts:
          self.wfile.write(answer.body[: cuts.pop(0)])
          self.wfile.flush()
          self.close_connection = True
          return
        self.wfile.write(answer.body)

      do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

      def log_message(self, *args):
        """Says nothing."""

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_port}"
    threading.Thread(
      target=self._server.serve_forever, args=(0.01,), daemon=True
    ).start()
    return self

  def stop(self):
    """Stops the server: nobody answers at its address."""
    self._server.shutdown()
    self._server.server_close()

  def __exit__(self, *error):
    self.stop()

  def environment(self, home):
    """Variables with which a process uses this hub, and a cache of its own."""
    return {
      "HF_ENDPOINT": self.url,
      "HF_HOME": str(home),
      "HF_HUB_OFFLINE": "0",
      "NO_PROXY": "127.0.0.1",
    }

  @contextlib.contextmanager
  def in_use(self, home):
    """Lets the client in this process use this hub, and a cache of its own.

    The client has read its variables when it was imported.
    """
    home = pathlib.Path(home)
    settings = {
      "ENDPOINT": self.url,
      "HUGGINGFACE_CO_URL_TEMPLATE": (
        self.url + "/{repo_id}/resolve/{revision}/{filename}"
      ),
      "HF_HUB_CACHE": str(home / "hub"),
      "HF_TOKEN_PATH": str(home / "token"),
      "HF_HUB_OFFLINE": False,
    }
    with (
      mock.patch.multiple(constants, **settings),
      mock.patch.dict(os.environ, self.environment(home)),
    ):
      os.environ.pop("HF_TOKEN", None)
      # The client keeps connections, and the proxies that it has found.
      huggingface_hub.close_session()
      try:
        yield self
      finally:
        huggingface_hub.close_session()
