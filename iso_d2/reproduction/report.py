"""Everything that is made of the records: tables, the list of models, figures."""

from .arm import SCALES
from .figures import write_figures
from .records import read_records
from .tables import write_tables
from .zoo import write_zoo


def write_report(root):
    """Write results/README.md's part, MODEL_ZOO.md and docs/figures/ from the records that there are.

    Args:
        root (Path): the repository.

    Returns:
        str: what was written, and which figures could not be and why.
    """
    records = {scale: read_records(root, scale) for scale in SCALES}
    # First, since the tables show those figures that there are
    drawn, notes = write_figures(root, records)
    paths = [*drawn, write_tables(root, records), write_zoo(root, records)]
    lines = [f"written: {path.relative_to(root)}" for path in paths if path is not None]
    return "\n".join([*lines, *notes])
