"""Fields of dataclasses that a program reads, with the types resolved.

An attribute read counts for a class only if the expression before the dot is
known to be of that class: from annotations of parameters, fields and returned
values, and from assignments. So a field `rows` of one class is not read because
another class has a field of that name. Validation does not count as reading:
methods `__post_init__`, `_check...` and `check_...` are left out.
"""

import ast
from collections.abc import Iterable, Iterator

Types = frozenset[str]
Env = dict[str, Types]
NOTHING: Types = frozenset()
# Calls on a container that give its elements.
ELEMENTS = ("values", "items", "get", "pop")
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def is_validation(name: str) -> bool:
  """Whether a method of this name only checks values."""
  return name == "__post_init__" or name.startswith(("_check", "check_"))


class Program:
  """Source files, with the types of their classes' members."""

  def __init__(self, sources: Iterable[str]):
    """Parses the sources and resolves the attributes of all objects."""
    self.reads: set[tuple[str, str]] = set()
    self._trees = [ast.parse(source) for source in sources]
    nodes = [node for tree in self._trees for node in ast.walk(tree)]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    self._members: dict[str, Env] = {node.name: {} for node in classes}
    self._fields: dict[str, Env] = {node.name: {} for node in classes}
    self._returns: Env = {}
    for node in nodes:
      if isinstance(node, FUNCTIONS):
        self._add(self._returns, node.name, self._named_in(node.returns))
    for owner in classes:
      for node in owner.body:
        if isinstance(node, ast.AnnAssign):
          types = self._named_in(node.annotation)
          self._fields[owner.name][node.target.id] = types
          self._add(self._members[owner.name], node.target.id, types)
        elif isinstance(node, FUNCTIONS):
          types = self._named_in(node.returns)
          self._add(self._members[owner.name], node.name, types)
    for _ in range(2):  # Attributes of self are known after the first time.
      for tree in self._trees:
        self._run(tree.body, {}, None)

  def unread(self, roots: Iterable[str]) -> set[tuple[str, str]]:
    """(class, field) of the roots and their groups that nobody reads."""
    fields = {
      (name, field)
      for name in self._tree(roots)
      for field in self._fields[name]
    }
    return fields - self.reads

  def unknown(self, roots: Iterable[str]) -> set[tuple[str, str]]:
    """(class, name) that the program reads of them and that do not exist."""
    classes = self._tree(roots)
    return {
      (owner, name)
      for owner, name in self.reads
      if owner in classes
      and name not in self._members[owner]
      and name not in ELEMENTS
    }

  def _tree(self, roots: Iterable[str]) -> set[str]:
    """The roots and the classes of their fields, and so on."""
    waiting, seen = list(roots), set()
    while waiting:
      name = waiting.pop()
      if name not in seen:
        seen.add(name)
        waiting += [t for types in self._fields[name].values() for t in types]
    return seen

  def _add(self, env: Env, name: str, types: Types) -> None:
    env[name] = env.get(name, NOTHING) | types

  def _named_in(self, annotation: ast.expr | None) -> Types:
    """Classes that an annotation names; a container counts as its elements."""
    names = set()
    for node in ast.walk(annotation) if annotation else ():
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        names |= self._named_in(ast.parse(node.value, mode="eval").body)
      elif isinstance(node, ast.Name):
        names.add(node.id)
      elif isinstance(node, ast.Attribute):
        names.add(node.attr)
    return frozenset(names & self._members.keys())

  def _run(self, body: Iterable[ast.AST], env: Env, owner: str | None) -> None:
    """Follows statements in their order."""
    for node in body:
      if isinstance(node, ast.ClassDef):
        self._run(node.body, env, node.name)
      elif isinstance(node, FUNCTIONS):
        if owner is None or not is_validation(node.name):
          self._run(node.body, env | self._parameters(node, owner), owner)
      elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr):
        self._assign(node, env)
      elif isinstance(node, ast.For | ast.comprehension):
        self._iterate(node.target, node.iter, env)
        self._run(
          node.ifs if isinstance(node, ast.comprehension) else node.body,
          env,
          owner,
        )
        self._run(getattr(node, "orelse", ()), env, owner)
      elif isinstance(node, ast.withitem):
        types = self._infer(node.context_expr, env)
        if node.optional_vars:
          self._bind(node.optional_vars, types, env)
      elif isinstance(node, ast.expr):
        self._infer(node, env)
      else:
        self._run(ast.iter_child_nodes(node), env, owner)

  def _parameters(self, node: FUNCTIONS, owner: str | None) -> Env:
    """What is known of a function's parameters."""
    arguments = node.args
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    env = {x.arg: self._named_in(x.annotation) for x in given}
    if owner is not None and given and given[0].arg == "self":
      env["self"] = frozenset({owner})
    return env

  def _assign(self, node: ast.AST, env: Env) -> None:
    """Follows an assignment; elements of tuples one by one."""
    if node.value is None:
      return
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    types = self._infer(node.value, env)
    for target in targets:
      pairs = [(target, types)]
      if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
        values = [self._infer(value, env) for value in node.value.elts]
        pairs = zip(target.elts, values, strict=False)
      for one, its_types in pairs:
        self._bind(one, its_types, env)

  def _iterate(self, target: ast.expr, values: ast.expr, env: Env) -> None:
    """Follows a loop; a literal table gives each target its column."""
    types = self._infer(values, env)
    rows = getattr(values, "elts", ())
    is_table = rows and all(isinstance(row, ast.Tuple) for row in rows)
    if not isinstance(target, ast.Tuple) or not is_table:
      self._bind(target, types, env)
      return
    columns = zip(*(row.elts for row in rows), strict=False)
    for one, column in zip(target.elts, columns, strict=False):
      its_types = NOTHING.union(*(self._infer(x, env) for x in column))
      self._bind(one, its_types, env)

  def _bind(self, target: ast.expr, types: Types, env: Env) -> None:
    """Gives a target its types."""
    if isinstance(target, ast.Name):
      env[target.id] = types
    elif isinstance(target, ast.Attribute):
      for name in self._infer(target.value, env):
        self._add(self._members[name], target.attr, types)
    elif isinstance(target, ast.Tuple | ast.List):
      for one in target.elts:
        self._bind(one, types, env)

  def _infer(self, node: ast.expr, env: Env) -> Types:
    """Classes of an expression; notes what it reads."""
    if isinstance(node, ast.Name):
      return env.get(node.id, NOTHING)
    if isinstance(node, ast.Attribute):
      owners = self._infer(node.value, env)
      self.reads |= {(owner, node.attr) for owner in owners}
      members = (self._members[owner] for owner in owners)
      return NOTHING.union(*(m.get(node.attr, NOTHING) for m in members))
    if isinstance(node, ast.Call):
      return self._call(node, env)
    if isinstance(node, ast.Lambda):
      self._infer(node.body, env | self._parameters(node, None))
      return NOTHING
    if isinstance(node, ast.NamedExpr):
      self._assign(node, env)
      return self._infer(node.target, env)
    if isinstance(
      node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp
    ):
      env = dict(env)
      self._run(node.generators, env, None)
      if not isinstance(node, ast.DictComp):
        return self._infer(node.elt, env)
      self._infer(node.key, env)
      return self._infer(node.value, env)
    if isinstance(node, ast.Subscript):
      self._infer(node.slice, env)
      return self._infer(node.value, env)
    operands = [
      x for x in ast.iter_child_nodes(node) if isinstance(x, ast.expr)
    ]
    return NOTHING.union(*(self._infer(operand, env) for operand in operands))

  def _call(self, node: ast.Call, env: Env) -> Types:
    """Classes of what a call returns; `**asdict(x)` reads every field of x."""
    given = [self._infer(argument, env) for argument in node.args]
    for keyword in node.keywords:
      types = self._infer(keyword.value, env)
      if keyword.arg is None and reads_all(keyword.value):
        self.reads |= {(t, f) for t in types for f in self._fields[t]}
    function = node.func
    if not isinstance(function, ast.Name | ast.Attribute):
      self._infer(function, env)
      return NOTHING
    is_name = isinstance(function, ast.Name)
    name = function.id if is_name else function.attr
    owners = NOTHING if is_name else self._infer(function.value, env)
    if name in self._members:
      return frozenset({name})
    if name in ("replace", "asdict", "vars", "getattr") and given:
      return given[0]
    if owners:
      self.reads |= {(owner, name) for owner in owners}
      members = [self._members[owner] for owner in owners]
      if name in ELEMENTS and not any(name in m for m in members):
        return owners
      return NOTHING.union(*(m.get(name, NOTHING) for m in members))
    return self._returns.get(name, NOTHING)


def reads_all(value: ast.expr) -> bool:
  """Whether a `**value` holds all fields of a dataclass."""
  return any(
    isinstance(node, ast.Call)
    and ast.unparse(node.func) in ("dataclasses.asdict", "vars")
    for node in ast.walk(value)
  )


def sources(*folders) -> Iterator[str]:
  """Texts of all Python files below the folders."""
  for folder in folders:
    for path in sorted(folder.rglob("*.py")):
      yield path.read_text()
