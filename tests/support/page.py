"""HTML documents as the tests see them."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """What these tests ask of a document: its cells, pictures, attributes and texts by id."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: dict[str, str] = {}
        self._open: str | None = None
        self.feed(document)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.tags.append((tag, given))
        if "id" in given:
            self._open = given["id"]
            self.texts[self._open] = ""
        if tag == "table":
            self.tables[self._open] = []
        if tag == "tr":
            self.tables[self._open].append([])
        if tag in ("td", "th"):
            self.tables[self._open][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("pre", "table", "ul"):
            self._open = None

    def handle_data(self, data: str) -> None:
        rows = self.tables.get(self._open)
        if rows and rows[-1]:
            rows[-1][-1] += data.strip()
        if self._open:
            self.texts[self._open] += data

    @property
    def table(self) -> list[list[str]]:
        """Cells of the metrics."""
        return self.tables["metrics"]

    def having(self, tag: str, attribute: str) -> list[str]:
        return [given[attribute] for name, given in self.tags if name == tag and attribute in given]
