"""The drawn predictions of a run as data URIs: few and small enough for one page."""

import base64
import io
from pathlib import Path

from PIL import Image, features

from ..evaluation.visualization import INDEX
from .reading import read_json

# Of each data set
MOST_PICTURES = 24
# Of the pictures of a run together, in bytes as text
MOST_BYTES = 3_000_000
# A panel is no wider, in pixels; of three and more panels each
WIDTHS = (640, 400)
FORMAT = "webp" if features.check("webp") else "jpeg"


def read_pictures(folder):
    """The pictures below OUTPUT_DIR/visualizations, cut into their panels.

    Returns:
        list[dict]: ``data``, the name of the data set; ``pictures``, each with ``title``, ``note``, ``error``
        (None where nothing was measured), ``wrong`` and ``panels``: (name, data URI, width, height) each;
        ``left_out``, how many more there are; ``broken``, names of files that cannot be read.
    """
    sets, size = [], 0
    for place in sorted(path for path in Path(folder, "visualizations").glob("*") if path.is_dir()):
        pictures, broken = [], []
        entries = _entries(place)
        for entry in entries[:MOST_PICTURES]:
            try:
                panels = _panels(place / Path(entry["file"]).name, entry.get("panels") or ["picture"])
            # of Pillow, by format: OSError, SyntaxError, ValueError ...
            except Exception:
                broken.append(str(entry["file"]))
                continue
            size += sum(len(uri) for _, uri, *_ in panels)
            if size > MOST_BYTES:
                break
            error = entry.get("error")
            error = float(error) if isinstance(error, (int, float)) else None
            shown = {key: str(entry.get(key, "")) for key in ("title", "note")}
            wrong = bool(entry.get("wrong", error is not None and error > 0))
            pictures.append({**shown, "error": error, "wrong": wrong, "panels": panels})
        if pictures or broken:
            left_out = len(entries) - len(pictures) - len(broken)
            found = {"data": place.name, "pictures": pictures, "left_out": left_out, "broken": broken}
            sets.append(found)
    return sets


def _entries(place):
    entries = read_json(place / INDEX)
    if isinstance(entries, list):
        return [e for e in entries if isinstance(e, dict) and isinstance(e.get("file"), str)]
    # of an evaluator that writes no index
    return [{"file": path.name, "title": path.stem} for path in sorted(place.glob("*.png"))]


def _panels(path, names):
    with Image.open(path) as image:
        image = image.convert("RGB")
    width, height = image.width // len(names), image.height
    found = []
    for i, name in enumerate(names):
        panel = image.crop((i * width, 0, (i + 1) * width, height))
        limit = WIDTHS[len(names) > 2]
        if width > limit:
            panel = panel.resize((limit, max(1, round(height * limit / width))), Image.Resampling.LANCZOS)
        # small images stay exact: a page enlarges their pixels
        tiny = panel.width <= 64
        stream = io.BytesIO()
        panel.save(stream, "png" if tiny else FORMAT, quality=82)
        text = base64.b64encode(stream.getvalue()).decode()
        uri = f"data:image/{'png' if tiny else FORMAT};base64,{text}"
        found.append((str(name), uri, *panel.size))
    return found
