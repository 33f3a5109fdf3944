"""What a Python file imports, read from its source without running it."""

import ast


def imported_names(path, package=""):
    """List the dotted names that a file imports anywhere, in functions too.

    Args:
        path (pathlib.Path): a Python file.
        package (str): the package the file is in, which relative imports are resolved against.

    Returns:
        list[str]: ``import a.b`` gives ``a.b``; so does ``from a import b``, whether b is a module or not.
    """
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = [node.module] if node.module else []
            if node.level:
                parents = package.split(".")
                source = parents[: len(parents) - node.level + 1] + source
            names += [".".join([*source, alias.name]) for alias in node.names]
    return names
