"""The API reference: a page per public package, written before a build, and references to names in docstrings."""

import importlib
import inspect
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import rimlit

log = logging.getLogger(__name__)
PACKAGE = Path(rimlit.__file__).parent
MODULES = ("deprecation", "errors", "spec", "types")
"""Public modules that are not packages."""
ORDER = (
    *("backbones", "mechanisms", "kernels", "encoders", "heads", "nn", "tasks", "data", "metrics", "training"),
    *(
        "rl",
        "comparison",
        "integrations",
        "tracking",
        "pictures",
        "testing",
        "types",
        "spec",
        "errors",
        "deprecation",
    ),
)
"""Pages in the order of the contents; a package that is not named here comes last."""
LIGHT = ("backbones", "mechanisms", "kernels", "encoders", "heads", "nn", "testing", *MODULES)


def public_packages() -> list[str]:
    """Return the names below ``rimlit`` that have a page."""
    found = [path.parent.name for path in PACKAGE.glob("*/__init__.py") if path.parent.name[0] != "_"]
    with_names = [name for name in found if getattr(importlib.import_module(f"rimlit.{name}"), "__all__", None)]
    names = [*with_names, *MODULES]
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def write_pages(app: Sphinx) -> None:
    """Write ``docs/api``: it is generated and not committed."""
    folder = Path(app.srcdir) / "docs" / "api"
    names = public_packages()
    pages = {"index": index_page(names)} | {name: package_page(name) for name in names}
    if folder.exists() and {path.stem for path in folder.iterdir()} != pages.keys():
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # else it would be built again
            path.write_text(text, encoding="utf-8")


def index_page(names: list[str]) -> str:
    """Return the page that lists the names of ``rimlit`` itself and the pages of its packages."""
    rows = [f"| {{py:obj}}`~{path}` | {summary_of(found)} |" for path, found in top_names()]
    toctree = "\n".join(names)
    return f"""\
# API reference

{PUBLIC}

## Names of `rimlit` itself

`from rimlit import NAME`; the right column says what each is.

| name | what it is |
| --- | --- |
{chr(10).join(rows)}

## From Python: fit

```{{eval-rst}}
.. autofunction:: rimlit.fit
.. autoclass:: rimlit.cli.fit.FitResult
   :members:
```

## Packages

```{{toctree}}
:maxdepth: 1

{toctree}
```
"""


PUBLIC = """\
Public is what these pages name: the names of `rimlit` and of the packages below, the options of the
[command line](../cli.md), the keys of configs, which are constructor arguments, and the fields of a run's files.
[Versions and deprecation](../../RELEASING.md#what-a-version-promises) says what may change when. A name that
begins with `_`, and a module that is not listed here, may change at any time."""


def top_names() -> list[tuple[str, Any]]:
    """Return the home and the object of each name of ``rimlit`` that has one."""
    names = [name for name in sorted(rimlit.__all__, key=str.lower) if name[0] != "_"]
    return [(full_name_of(name), getattr(rimlit, name)) for name in names]


def full_name_of(name: str) -> str:
    """Return the dotted name under which the reference describes a name of ``rimlit``."""
    if name == "fit":
        return "rimlit.fit"
    found = getattr(rimlit, name)
    for package in public_packages():
        if getattr(importlib.import_module(f"rimlit.{package}"), name, None) is found:
            return f"rimlit.{home_of(package, name) if package not in MODULES else package}.{name}"
    raise LookupError(f"rimlit.{name} is in no public package")


def summary_of(found: Any) -> str:
    """Return the first line of an object's docstring."""
    text = (found.__doc__ or "").strip().partition("\n")[0] if callable(found) else ""
    if not text or text.startswith("type("):
        return "A type for annotations."
    return re.sub(r":\w+:(?=`)", "", text).replace("``", "`").replace("|", "\\|")


def package_page(name: str) -> str:
    """Return the page of a package: its names, classes first."""
    extra = "" if name in LIGHT else "\nNeeds the extra `train`.\n"
    module = importlib.import_module(f"rimlit.{name}")
    named = getattr(module, "__all__", None)
    if named is None:
        lines = [f".. automodule:: rimlit.{name}", "   :members:", "   :show-inheritance:"]
    else:
        lines = [f".. automodule:: rimlit.{name}", "", f".. currentmodule:: rimlit.{name}"]
        kinds = [(kind_of(getattr(module, each)), each) for each in named if home_of(name, each) == name]
        for kind, each in sorted(kinds, key=lambda pair: (KINDS.index(pair[0]), named.index(pair[1]))):
            found = getattr(module, each)
            if kind == "data":
                lines += ["", f".. py:data:: {each}", "", f"   {described(found)}"]
            else:
                lines += ["", f".. auto{kind}:: {each}", *OPTIONS[kind]]
        lines += [
            f"\n``{each}``: see :py:obj:`rimlit.{home_of(name, each)}.{each}`."
            for each in named
            if home_of(name, each) != name
        ]
    return "\n".join([f"# rimlit.{name}", extra, "```{eval-rst}", *lines, "```", ""])


KINDS = ("class", "function", "data")
OPTIONS = {"class": ("   :members:", "   :show-inheritance:"), "function": ()}


def described(found: Any) -> str:
    """Return what a constant or a type alias is; autodoc would show the docstring of its type."""
    if isinstance(found, Mapping):
        return f"A mapping with the keys ``{', '.join(map(str, found))}``."
    if isinstance(found, (int, float, str, tuple)):
        return f"``{found!r}``"
    text = re.sub(r"\b(?:typing|collections\.abc|[\w.]+)\.(?=\w)", "", str(found))
    return f"A type for annotations: ``{text}``"


def kind_of(found: Any) -> str:
    """Return the kind of directive that describes an object."""
    if inspect.isclass(found):
        return "class"
    return "function" if inspect.isroutine(found) else "data"


def home_of(package: str, name: str) -> str:
    """Return the package that describes a name of ``package``: the one it comes from, if that exports it."""
    found = getattr(importlib.import_module(f"rimlit.{package}"), name)
    parts = (getattr(found, "__module__", None) or "").split(".")
    candidates = [parts[1]] if parts[0] == "rimlit" and len(parts) > 1 else public_packages()
    for other in candidates:
        module = importlib.import_module(f"rimlit.{other}")
        if name in getattr(module, "__all__", ()) and getattr(module, name) is found:
            return other
    return package


def load_lazy_names(app: Sphinx, config: Any) -> None:
    """Set names that are imported on first use, so that autodoc sees them; drop those described elsewhere."""
    for name in public_packages():
        module = importlib.import_module(f"rimlit.{name}")
        for each in getattr(module, "__all__", ()):
            setattr(module, each, getattr(module, each))


def skip_field(app: Sphinx, what: str, name: str, found: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of a NamedTuple that say nothing but their number: the signature names them."""
    return True if str(getattr(found, "__doc__", "")).startswith("Alias for field number") else None


def show_signature(
    app: Sphinx, what: str, name: str, found: Any, options: Any, signature: str | None, result: str | None
) -> tuple[str, str | None] | None:
    """Give a class whose ``__new__`` or metaclass takes anything the arguments of its constructor."""
    if what != "class" or not signature or "*args" not in signature:
        return None
    shown = inspect.signature(found)
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in shown.parameters.values()]
    return str(shown.replace(parameters=plain, return_annotation=inspect.Signature.empty)), result


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement) -> Any:
    """Find what a reference in a docstring or a signature means: a public name under its last part, or plain text.

    A reference to something that exists and has no page stays text; one to nothing is a warning.
    """
    if node.get("refdomain") != "py":
        return None
    target, module = node["reftarget"].lstrip("~"), node.get("py:module")
    last = target.rpartition(".")[2]
    objects = env.domains["py"].objects
    matches = sorted(
        (
            name
            for name in objects
            if name.rpartition(".")[2] == last and name.endswith(f".{target.split('.', 1)[-1]}")
        ),
        key=len,
    )
    if matches and (len(matches) == 1 or not exists(target, None)):
        found = objects[matches[0]]
        return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, content, matches[0])
    return content if exists(target, module) else None


def exists(target: str, module: str | None) -> bool:
    """Whether a dotted name can be imported, as it is or from a module of rimlit or the standard library."""
    prefixes = [module] if module else []
    homes = [
        "",
        *(f"{prefix}." for prefix in (*prefixes, "builtins", "typing", "collections.abc", "torch", "torch.nn")),
    ]
    return any(is_importable(home + target) for home in homes) or is_in_package(target)


def is_importable(path: str) -> bool:
    """Whether ``path`` names a module, or an attribute of one or of a class."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        except Exception:  # a module that cannot be imported here
            return False
        try:
            for part in parts[end:]:
                if not isinstance(found, ModuleType) and part in getattr(found, "__annotations__", {}):
                    return True
                found = getattr(found, part)
        except AttributeError:
            return False
        return True
    return False


def is_in_package(target: str) -> bool:
    """Whether a class or function of the package has this name, or a type variable or alias of its modules."""
    first, *rest = target.split(".")
    for name, module in list(sys.modules.items()):
        if name.startswith("rimlit") and first in vars(module):
            return not rest or is_importable(f"{name}.{target}")
    return False


def set_dashes(app: Sphinx, document: nodes.document) -> None:
    """Put a dash between an argument and what it is; Sphinx writes two hyphens for its quotes extension."""
    for node in list(document.findall(nodes.Text)):
        if node == " -- ":
            node.parent.replace(node, nodes.Text(" – "))


def check_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of a public name that the reference does not describe."""
    described = env.domains["py"].objects
    ids = {id(found) for found in map(lookup, described) if found is not None}
    for package in public_packages():
        module = importlib.import_module(f"rimlit.{package}")
        for name in getattr(module, "__all__", ()):
            found = getattr(module, name)
            if f"rimlit.{package}.{name}" not in described and id(found) not in ids:
                log.warning("the API reference does not describe rimlit.%s.%s", package, name)


def lookup(path: str) -> Any:
    """Return the object at a dotted path, None if there is none."""
    home, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(home), name, None)
    except ImportError:
        return None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the pages and the references."""
    app.connect("config-inited", load_lazy_names)
    app.connect("builder-inited", write_pages, priority=100)
    # types are in annotations: "Word: text" below an attribute is a sentence
    GoogleDocstring._consume_inline_attribute = lambda self: ("", self._dedent(self._consume_to_end()))  # type: ignore[method-assign]
    app.connect("autodoc-skip-member", skip_field)
    app.connect("autodoc-process-signature", show_signature)
    app.connect("missing-reference", resolve)
    app.connect("doctree-read", set_dashes)
    app.connect("env-check-consistency", check_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
