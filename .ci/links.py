"""Check a built site: python .ci/links.py FOLDER.

Each link to a file, and to a place in a page, must lead somewhere. No page may load anything from another server.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors of a page, and its links as (tag, address)."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links = {"", "top"}, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.anchors |= {value for name, value in attrs if name in ("id", "name")}
        self.links += [(tag, value) for name, value in attrs if name in ("href", "src", "poster") and value]


def problem(path: Path, tag: str, link: str, pages: dict[Path, Page]) -> str | None:
    """Return what is wrong with a link of a page, or None."""
    parts = urlsplit(link)
    if parts.scheme == "data" or (parts.scheme and tag == "a"):
        return None
    if parts.scheme or parts.netloc:
        return "is loaded from another server"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file():
        return "leads to no file"
    if target in pages and unquote(parts.fragment) not in pages[target].anchors:
        return "leads to no place in its page"
    return None


def main(folder: Path) -> int:
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html")) if path.parent.name != "_static"}
    links = [(path, *link) for path, page in pages.items() for link in page.links]
    wrong = [f"{path}: {link} {found}" for path, tag, link in links if (found := problem(path, tag, link, pages))]
    styles = [(path, path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.css"))]
    wrong += [f"{path} loads something from another server" for path, text in styles if re.search(FETCH, text)]
    print(*wrong, f"{len(links)} links on {len(pages)} pages, {len(wrong)} wrong", sep="\n")
    return bool(wrong)


FETCH = r"url\([\"']?(https?:)?//|@import [\"'](https?:)?//"

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
