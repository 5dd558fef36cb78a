"""Writes everything that is made from the schemas of our nodes: locales/, the tables of the help pages, example_workflows/,

js/widget_names.js, js/zeros.js, nodes/host/access/places.json, docs/templates.md, docs/switching.md, docs/families.md and docs/glossary.md. Needs no ComfyUI.

Run it when a node, an input or a setting changes: python tests/reference/make_texts.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import make_docs  # noqa: E402
import make_families  # noqa: E402
import make_glossary  # noqa: E402
import make_locales  # noqa: E402
import make_switching  # noqa: E402
import make_widget_names  # noqa: E402
import make_workflows  # noqa: E402
from schemas import schemas  # noqa: E402


def main() -> None:
    ours = schemas()
    make_locales.write(ours)
    make_docs.write(ours)
    make_workflows.write(ours)
    make_glossary.write()
    make_workflows.write_page()
    make_switching.write()
    make_families.write()
    make_widget_names.write(ours)


if __name__ == "__main__":
    main()
