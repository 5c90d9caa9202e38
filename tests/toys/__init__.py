"""Small models, data and files that tests share, by family; and where the repository and its fixtures stand."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = Path(__file__).parent / "files"
