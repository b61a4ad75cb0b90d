"""Fill pages from the source they describe, so that they cannot differ from it."""

from typing import Any

from mnemoscope.tables import DERIVED, TABLES

MARK = "<!-- tables -->"


def tables() -> str:
    """Return every table of a run folder with every column, as Markdown."""
    parts: list[str] = []
    for table in TABLES.values():
        derived = " Derived: can be rebuilt without a model." if table.name in DERIVED else ""
        parts.append(f"## {table.name}\n\nOne row is {table.row}.{derived}\n")
        parts.append("| column | type | unit | meaning |\n|---|---|---|---|")
        for column in table.columns:
            null = " May be null." if column.nullable else ""
            about = column.about.replace("|", "\\|")
            parts.append(
                f"| `{column.name}` | {column.type} | {column.unit} | "
                f"{about[0].upper()}{about[1:]}.{null} |"
            )
        parts.append("")
    return "\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark of a page by what it stands for."""
    return markdown.replace(MARK, tables())
