"""HTML documents as the tests see them."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """What these tests ask of a document: its cells, pictures, attributes and texts by id."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.table: list[list[str]] = []
        self.texts: dict[str, str] = {}
        self._open: str | None = None
        self.feed(document)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.tags.append((tag, given))
        if "id" in given:
            self._open = given["id"]
            self.texts[self._open] = ""
        if tag == "tr":
            self.table.append([])
        if tag in ("td", "th"):
            self.table[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("pre", "table", "ul"):
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open == "metrics" and self.table and self.table[-1]:
            self.table[-1][-1] += data.strip()
        if self._open:
            self.texts[self._open] += data

    def having(self, tag: str, attribute: str) -> list[str]:
        return [given[attribute] for name, given in self.tags if name == tag and attribute in given]
