"""How the site is made: pages from outside docs/, the notebook, the reference, and links among all of them.

Links in the sources are those of the repository, so that they work there. Here they lead to the page that a
file becomes; other files that are linked (measurements, a module) are copied into the site.
"""

import ast
import base64
import json
import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# Pages from outside docs/, by their path in the repository
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "configs/README.md": "configs.md",
    "results/README.md": "results.md",
    "docs/tour.ipynb": "tour.md",
}
# Of each package what the reference has beside its __all__: what those names give, and the keys of a config
ALSO = {
    "iso_d2": ["config.add_iso_config", "engine.trained.TrainedNetwork", "engine.trained.Prediction"],
    "engine": ["setup.load_config", "predictor.Predictor", "export.export_model", "exported.ExportedModel"],
}
# Where a name is defined that the source alone does not show: given by __getattr__, or named like its module
DEFINED = {f"iso_d2.{name}": f"iso_d2.engine.trained.{name}" for name in ("load", "list_models")}
DEFINED["iso_d2.isometry.isometrize"] = "iso_d2.isometry.isometrize.isometrize"
PACKAGES = ("iso_d2", "isometry", "modeling", "engine", "data", "evaluation", "analysis")
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)(?=[)#])")


def source_of(uri):
    """The path in the repository of a page."""
    return {page: path for path, page in PAGES.items()}.get(uri, f"docs/{uri}")


def target_of(path):
    """The URI in the site of a file of the repository."""
    return PAGES.get(path, path.removeprefix("docs/"))


def on_config(config):
    """Headings have the anchors that they have in the repository."""
    config.mdx_configs["toc"]["slugify"] = lambda heading, separator: re.sub(
        r"[^\w\s-]", "", heading.lower()
    ).replace(" ", separator)


def on_files(files, config):
    """Add the pages from outside docs/, the reference, and every other file that a page links."""
    contents = {uri: (ROOT / path).read_text(encoding="utf-8") for path, uri in PAGES.items()}
    files.remove(files.get_file_from_path("tour.ipynb"))
    contents["tour.md"], figures = page_of_notebook(json.loads(contents["tour.md"]))
    contents |= figures
    contents |= {f"reference/{name}.md": reference(name) for name in PACKAGES}
    for uri, content in contents.items():
        files.append(File.generated(config, uri, content=content))
    for file in list(files.documentation_pages()):
        folder = posixpath.dirname(source_of(file.src_uri))
        for target in LINK.findall(file.content_string):
            path = posixpath.normpath(posixpath.join(folder, target))
            known = files.get_file_from_path(target_of(path))
            if known is None and (ROOT / path).is_file():
                files.append(File.generated(config, target_of(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Lead links to where the files of the repository are in the site; indent lists as MkDocs wants it."""
    here, source = posixpath.dirname(page.file.src_uri), posixpath.dirname(source_of(page.file.src_uri))

    def lead(match):
        target = target_of(posixpath.normpath(posixpath.join(source, match[1])))
        known = files.get_file_from_path(target) is not None
        return posixpath.relpath(target, here or ".") if known else match[1]

    # what goes on in an item of a numbered list needs four blanks here
    return re.sub(r"^ {3}(?=\S)", "    ", LINK.sub(lead, markdown), flags=re.M)


def page_of_notebook(notebook):
    """(Markdown, its figures by URI) of a notebook with its outputs."""
    parts, figures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", []):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            else:
                name = f"figures/tour_{len(figures)}.png"
                figures[name] = base64.b64decode(output["data"]["image/png"])
                parts.append(f"![Output of the cell above]({name})")
    return "\n\n".join(parts), figures


def public_names(package):
    """list[str]: the dotted names that the reference of a package shows."""
    folder = ROOT / "iso_d2" / ("" if package == "iso_d2" else package)
    prefix = "iso_d2" if package == "iso_d2" else f"iso_d2.{package}"
    for node in ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            names = ast.literal_eval(node.value)
    # iso_d2's packages have pages of their own
    names = [name for name in names if not (package == "iso_d2" and name in PACKAGES)]
    return [f"{prefix}.{name}" for name in [*names, *ALSO.get(package, ())]]


def reference(package):
    """The page of a package: its docstring, then a section for each name."""
    prefix = "iso_d2" if package == "iso_d2" else f"iso_d2.{package}"
    parts = [
        f"# {prefix}",
        f"::: {prefix}\n    options:\n      members: false\n      show_root_heading: false",
    ]
    for name in public_names(package):
        heading = f"\n    options: {{heading: {name}}}" if name in DEFINED else ""
        parts.append(f"::: {DEFINED.get(name, name)}{heading}")
    return "\n\n".join(parts) + "\n"


class Roles(griffe.Extension):
    """Cross-references of docstrings, such as :func:`~iso_d2.isometry.conv_gain`, as links of the site."""

    def on_package(self, *, pkg, **_):
        stack = [pkg]
        while stack:
            obj = stack.pop()
            stack += [member for member in obj.members.values() if not member.is_alias]
            if obj.docstring:
                text = obj.docstring.value
                for role, name in re.findall(r"(:\w+:`([^`]+)`)", text):
                    text = text.replace(role, self.link(obj, name))
                # "first, second (int): what both are": the parser takes what is before a blank for the name
                obj.docstring.value = re.sub(r"(?<=\w,) (?=(?:\w+, )*\w+(?: \([^()]*\))?: )", "\u00a0", text)

    @staticmethod
    def link(scope, name):
        """A link if the reference has what the name means where it stands, else its code."""
        target = name.lstrip("~")
        first, dot, rest = target.partition(".")
        while scope and first not in scope.members:
            scope = scope.parent
        shown = target.rsplit(".", 1)[-1] if name.startswith("~") else target
        if scope:
            member = scope.members[first]
            target = (member.target_path if member.is_alias else member.path) + dot + rest
        return f'<autoref identifier="{target}" optional>`{shown}`</autoref>'
