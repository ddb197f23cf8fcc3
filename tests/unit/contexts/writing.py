"""Template files for tests."""

from __future__ import annotations

from pathlib import Path


def write(folder: Path, name: str, text: str = "Some text.", *, version: str = "1", file: str | None = None) -> Path:
    """A template in a folder, by the name of its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (file or f"{name}.md")
    path.write_text(f"---\nname: {name}\nversion: {version}\ndescription: For tests.\n---\n\n{text}\n", encoding="utf-8")
    return path
