"""Writes the services' configuration: each file below etc/, its `${NAME}` filled from the environment.

    render.py SOURCE TARGET

A name that the environment does not have is an error. What is unchanged is not written.
"""

import os
import string
import sys
from pathlib import Path


def main(source: Path, target: Path) -> None:
    """Render the tree."""
    for template in sorted(path for path in source.rglob("*") if path.is_file()):
        text = string.Template(template.read_text()).substitute(os.environ)
        rendered = target / template.relative_to(source)
        rendered.parent.mkdir(parents=True, exist_ok=True)
        if not rendered.exists() or rendered.read_text() != text:
            rendered.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
