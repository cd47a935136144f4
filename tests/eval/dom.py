"""A page as a tree, read strictly: a tag that is not closed in order is an error."""

import html.parser

VOID = {"img", "meta", "br", "wbr"}


class Node:
    def __init__(self, tag, attributes=None, parent=None):
        self.tag, self.attributes, self.parent = tag, dict(attributes or ()), parent
        self.children = []

    def __getitem__(self, name):
        return self.attributes.get(name)

    @property
    def text(self):
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, tag, style=None):
        """Elements below, in order, of a tag and perhaps a class."""
        for child in self.children:
            if isinstance(child, Node):
                if child.tag == tag and (style is None or style in (child["class"] or "").split()):
                    yield child
                yield from child.all(tag, style)

    def one(self, tag, style=None):
        (found,) = self.all(tag, style)
        return found

    def rows(self):
        """Cells of a table's body, row by row."""
        return [
            [c for c in tr.children if isinstance(c, Node)] for tr in self.one("tbody").all("tr")
        ]


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = self.here = Node("root")

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        node = Node(tag, attrs, self.here)
        self.here.children.append(node)
        if tag not in VOID:
            self.here = node

    def handle_startendtag(self, tag, attrs):
        self.here.children.append(Node(tag, attrs, self.here))

    def handle_endtag(self, tag):
        assert self.here.tag == tag, f"<{self.here.tag}> ends with </{tag}>"
        self.here = self.here.parent

    def handle_data(self, data):
        self.here.children.append(data)


def parse(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.here is reader.root, f"<{reader.here.tag}> is not closed"
    return reader.root


def value(cell):
    """The exact figure of a cell."""
    return float(cell.one("data")["value"])
