"""The site builds without a warning; its links lead somewhere; every public name is in the reference."""

import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
    pytest.importorskip(package, reason="the site needs mkdocs-material and mkdocstrings-python")

os.environ["NO_MKDOCS_2_WARNING"] = "1"  # read when the theme is imported

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
site_hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site_hooks)


class Page(HTMLParser):
    """Anchors, links and what a page loads by itself."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loads, self.words = set(), [], [], []
        self.feed(text)

    def handle_data(self, data):
        self.words += data.split()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        elif url := attributes.get("src") or (tag == "link" and attributes.get("href")):
            self.loads.append(url)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder, and by path its pages."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder, {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}


def test_every_page_is_there(site):
    folder, pages = site
    guides = {path.with_suffix(".html").name for path in (ROOT / "docs").iterdir() if path.suffix == ".md"}
    assert guides | {"index.html", "tour.html", "configs.html", "results.html"} <= {
        str(path.relative_to(folder)) for path in pages
    }


def test_links_lead_somewhere(site):
    folder, pages = site
    broken, inside = [], 0
    for path, page in pages.items():
        for url in [*page.links, *page.loads]:
            parts = urlsplit(url)
            if parts.scheme or (path.name == "404.html" and url.startswith("/")):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            inside += 1
            missing = (
                parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors
            )
            # the page's own top
            if not target.exists() or (missing and parts.fragment != "__skip"):
                broken.append(f"{path.relative_to(folder)}: {url}")
    assert broken == [] and inside > 1000


def test_nothing_is_loaded_from_the_network(site):
    _, pages = site
    assert [url for page in pages.values() for url in page.loads if urlsplit(url).netloc] == []


@pytest.mark.parametrize("package", site_hooks.PACKAGES)
def test_every_public_name_is_in_the_reference_with_its_docstring(site, package):
    folder, pages = site
    page = pages[folder / "reference" / f"{package}.html"]
    names, text = site_hooks.public_names(package), squashed("".join(page.words))
    module = importlib.import_module("iso_d2" if package == "iso_d2" else f"iso_d2.{package}")
    public = {f"{module.__name__}.{name}" for name in module.__all__}
    assert public - {f"iso_d2.{name}" for name in site_hooks.PACKAGES} <= set(names)
    for name in names:
        defined = site_hooks.DEFINED.get(name, name)
        value = pkgutil.resolve_name(defined)
        assert defined in page.anchors, name
        assert value.__doc__, f"{name} has no docstring"
        first = re.sub(r":\w+:`~?([^`]+)`", r"\1", inspect.getdoc(value).split("\n\n")[0])
        assert squashed(first)[-30:] in text, f"the reference of {name} does not say: {first}"


def squashed(text):
    """Without markup and blanks."""
    return re.sub(r"[\s`*]", "", text)


def test_the_reference_says_arguments_and_links_names(site):
    folder, _ = site
    text = (folder / "reference" / "isometry.html").read_text(encoding="utf-8")
    assert 'href="#iso_d2.isometry.orthogonality_losses"' in text
    assert "Parameters:" in text and "Returns:" in text and "Raises:" in text
    for path in (folder / "reference").glob("*.html"):
        assert ":func:" not in path.read_text() and ":class:" not in path.read_text(), path.name
