"""Where a page is written: never over anybody else's file."""

from pathlib import Path

from upslope.errors import UpslopeError

MARK = "<!-- a page of upslope -->"
"""Every page holds it, so that only a page is ever replaced."""
SUFFIXES = (".html", ".htm")


def page_path(output: str | Path, default: str) -> Path:
    """The file of a page: in a folder it is called `default`, and a name without a suffix gets `.html`.

    Raises:
        UpslopeError: another suffix, a folder that is not there, or a file that is no page of upslope.
    """
    path = Path(output)
    if path.is_dir() or str(output).endswith(("/", "\\")):
        path /= default
    if not path.suffix:
        path = path.with_suffix(".html")
    if path.suffix.lower() not in SUFFIXES:
        raise UpslopeError(
            f"A page is HTML, and {path} is named as something else. Give --output a name that ends in .html, or a "
            "folder."
        )
    if not path.parent.is_dir():
        raise UpslopeError(f"There is no folder {path.parent} to write {path.name} into. Make it first.")
    if path.exists() and not is_page(path):
        raise UpslopeError(f"{path} exists and is not a page of upslope, so it is not replaced. Give another --output.")
    return path


def is_page(path: Path) -> bool:
    """Whether a file is a page that upslope wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(500)
