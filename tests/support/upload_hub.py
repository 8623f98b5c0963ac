"""The loopback hub, with what the client asks for when it uploads a model.

Files outside git go by the protocol of Git LFS: the client asks where to put
an object, puts it there, and names its hash in the commit. The other transfer,
xet, is switched off.
"""

import base64
import contextlib
import hashlib
import json
from unittest import mock

import yaml
from huggingface_hub import constants
from loopback_hub import MAIN, Answer, LoopbackHub, as_json, git_hash, is_large


class UploadHub(LoopbackHub):
  """The hub; `TOKEN` may write to the repositories of `ORG`.

  Attributes:
    private: names of private repositories.
    objects: files outside git by their SHA-256.
    messages: of the commits that were uploaded.
  """

  ORG = "acme"

  def __init__(self):
    super().__init__()
    self.private: set[str] = set()
    self.objects: dict[str, bytes] = {}
    self.messages: list[str] = []
    repo = r"(?P<repo>[^/]+/[^/]+)"
    self.routes = [
      ("POST", "/api/repos/create", self.create),
      ("POST", "/api/validate-yaml", self.validate_card),
      ("POST", rf"/api/models/{repo}/preupload/{MAIN}", self.choose_modes),
      ("POST", rf"/{repo}\.git/info/lfs/objects/batch", self.list_objects),
      ("PUT", r"/objects/(?P<oid>[0-9a-f]{64})", self.put_object),
      ("POST", rf"/api/models/{repo}/commit/{MAIN}", self.receive_commit),
      *self.routes,
    ]

  def refusal(self, request, org):
    """The answer to whoever may not write to an account's repositories."""
    if request.headers.get("authorization") != f"Bearer {self.TOKEN}":
      return Answer(401, b"{}", {"X-Error-Message": "Invalid credentials"})
    if org != self.ORG:
      return Answer(403, b"{}", {"X-Error-Message": "No rights to write"})
    return None

  def create(self, request):
    """A new repository, which has a file of the hub's own."""
    asked = json.loads(request.body)
    name = f"models/{asked['organization']}/{asked['name']}"
    url = {"url": f"{self.url}/{name.removeprefix('models/')}"}
    refusal = self.refusal(request, asked["organization"])
    if refusal is not None:
      return refusal
    if name in self.repos:
      return as_json(url, status=409)
    if asked.get("visibility") == "private":
      self.private.add(name)
    self.commit(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
    return as_json(url)

  def describe(self, request, repo, revision=None):
    """Facts about a repository; a private one is there for its owner alone."""
    is_owner = request.headers.get("authorization") == f"Bearer {self.TOKEN}"
    if repo in self.private and not is_owner:
      return self.find("", None)
    answer = super().describe(request, repo, revision)
    if answer.status != 200:
      return answer
    return as_json(json.loads(answer.body) | {"private": repo in self.private})

  def validate_card(self, request):
    """Whether the card begins with an object of YAML."""
    content = json.loads(request.body)["content"]
    try:
      _, front, _ = content.split("---\n", 2)
      is_object = isinstance(yaml.safe_load(front), dict)
    except (ValueError, yaml.YAMLError):
      is_object = False
    if is_object:
      return as_json({"errors": [], "warnings": []})
    return as_json({"errors": [{"message": "no metadata"}]}, status=400)

  def choose_modes(self, request, repo):
    """Which files go into git, and which outside."""
    refusal = self.refusal(request, repo.split("/")[0])
    if refusal is not None:
      return refusal
    described, commit = self.find(f"models/{repo}", MAIN)
    stored = described.commits[commit]
    chosen = []
    for file in json.loads(request.body)["files"]:
      path = file["path"]
      chosen.append(
        {
          "path": path,
          "uploadMode": "lfs" if is_large(path) else "regular",
          "shouldIgnore": False,
          "oid": git_hash(stored[path]) if path in stored else None,
        }
      )
    return as_json({"files": chosen})

  def list_objects(self, request, repo):
    """Where to put the objects that are not there yet."""
    objects = []
    for wanted in json.loads(request.body)["objects"]:
      if wanted["oid"] not in self.objects:
        href = f"{self.url}/objects/{wanted['oid']}"
        wanted |= {"actions": {"upload": {"href": href}}}
      objects.append(wanted)
    return as_json({"transfer": "basic", "objects": objects})

  def put_object(self, request, oid):
    """Stores an object, if it is the one that was announced."""
    if hashlib.sha256(request.body).hexdigest() != oid:
      return Answer(400)
    self.objects[oid] = request.body
    return Answer(200)

  def receive_commit(self, request, repo):
    """A commit of files in lines of JSON, on top of the last one."""
    refusal = self.refusal(request, repo.split("/")[0])
    if refusal is not None:
      return refusal
    described, last = self.find(f"models/{repo}", MAIN)
    files = dict(described.commits[last])
    for line in request.body.splitlines():
      item = json.loads(line)
      value = item["value"]
      match item["key"]:
        case "header":
          self.messages.append(value["summary"])
        case "file":
          files[value["path"]] = base64.b64decode(value["content"])
        case "lfsFile":
          files[value["path"]] = self.objects[value["oid"]]
        case "deletedFile":
          del files[value["path"]]
    commit = self.commit(f"models/{repo}", files)
    url = f"{self.url}/{repo}/commit/{commit}"
    return as_json({"commitUrl": url, "commitOid": commit})

  def environment(self, home):
    """As that of the loopback hub, without xet."""
    return super().environment(home) | {"HF_HUB_DISABLE_XET": "1"}

  @contextlib.contextmanager
  def in_use(self, home, token=LoopbackHub.TOKEN):
    """As that of the loopback hub, without xet; None has no token."""
    with (
      super().in_use(home),
      mock.patch.object(constants, "HF_HUB_DISABLE_XET", True),
      mock.patch.dict("os.environ", {"HF_TOKEN": token} if token else {}),
    ):
      yield self
