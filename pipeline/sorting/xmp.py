"""Keywords in XMP sidecars. What a sidecar has stays as it is, byte by byte.

The names of the elements are those of Adobe's XMP specification, part 1 (ISO 16684-1).
"""

from dataclasses import dataclass, field
from xml.parsers import expat
from xml.sax.saxutils import escape

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
SUBJECT = f"{DC} subject"
# Lists of keywords that some programs read instead of dc:subject, if they are there.
ALSO = ("http://ns.adobe.com/lightroom/1.0/ hierarchicalSubject", "http://www.digikam.org/ns/1.0/ TagsList")
EMPTY = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
    b'  <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
    b'    <rdf:Description rdf:about=""></rdf:Description>\n'
    b"  </rdf:RDF>\n"
    b"</x:xmpmeta>\n"
)


@dataclass
class _Element:
    name: str  # namespace and local name
    tag: str  # as it is written
    start: int  # byte
    end: int = 0  # byte: where its end tag starts; of an empty element, where it ends
    empty: bool = False  # <tag/>
    text: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    children: list["_Element"] = field(default_factory=list)


def with_keywords(sidecar: bytes, keywords: tuple[str, ...]) -> bytes | None:
    """``sidecar`` with each of ``keywords`` that it lacks; None if it is no XMP that can be added to."""
    try:
        root = _parse(sidecar)
        changed = _spliced(sidecar, root, keywords)
        return changed if changed is None or _has(_parse(changed), keywords) else None
    except (expat.ExpatError, _NoXmpError):
        return None


class _NoXmpError(Exception):
    """A file is not what this module adds to."""


def _parse(content: bytes) -> _Element:
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.namespace_prefixes = True
    root = _Element("", "", 0)
    open_elements = [root]

    def begin(name: str, attributes: dict[str, str]) -> None:
        space, local, prefix = [*name.split(" "), "", ""][:3] if " " in name else ("", name, "")
        found = _Element(f"{space} {local}", f"{prefix}:{local}" if prefix else local, parser.CurrentByteIndex)
        found.attributes = {" ".join(key.split(" ")[:2]): value for key, value in attributes.items()}
        open_elements[-1].children.append(found)
        open_elements.append(found)

    def finish(_: str) -> None:
        found = open_elements.pop()
        found.end = parser.CurrentByteIndex
        whole = content[found.start : found.end]
        found.empty = not found.children and not found.text and whole.endswith(b"/>")

    def text(more: str) -> None:
        open_elements[-1].text += more

    def declaration(_: str, encoding: str | None, __: int) -> None:
        if (encoding or "utf-8").lower() not in ("utf-8", "us-ascii"):
            raise _NoXmpError

    def document_type(*_: object) -> None:  # entities of its own, which no program writes
        raise _NoXmpError

    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise _NoXmpError
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = begin, finish, text
    parser.XmlDeclHandler, parser.StartDoctypeDeclHandler = declaration, document_type
    parser.Parse(content, True)
    return root


def _descriptions(root: _Element) -> list[_Element]:
    inside = [root]
    for element in inside:
        if element.name == f"{RDF} RDF":
            return [child for child in element.children if child.name == f"{RDF} Description"]
        inside += element.children
    return []


def _lists(root: _Element, name: str) -> list[_Element]:
    """The bags of the property ``name``. Raises ``_NoXmpError`` if the property is something else."""
    found = []
    for description in _descriptions(root):
        if name in description.attributes:
            raise _NoXmpError
        for child in description.children:
            if child.name == name:
                bags = [each for each in child.children if each.name in (f"{RDF} Bag", f"{RDF} Seq")]
                if len(bags) != 1 or len(child.children) != 1:
                    raise _NoXmpError
                found += bags
    return found


def _items(bag: _Element) -> list[str]:
    return [child.text.strip() for child in bag.children if child.name == f"{RDF} li"]


def _has(root: _Element, keywords: tuple[str, ...]) -> bool:
    return {*keywords} <= {item for bag in _lists(root, SUBJECT) for item in _items(bag)}


def _spliced(content: bytes, root: _Element, keywords: tuple[str, ...]) -> bytes | None:
    descriptions = _descriptions(root)
    if not descriptions:
        return None
    added: list[tuple[_Element, str]] = []
    for name in (SUBJECT, *ALSO):
        bags = _lists(root, name)
        if bags:
            missing = [each for each in keywords if each not in _items(bags[0])]
            tag = ":".join([*bags[0].tag.split(":")[:-1], "li"])
            added.append((bags[0], "".join(f"<{tag}>{escape(each)}</{tag}>" for each in missing)))
        elif name == SUBJECT:
            rdf = descriptions[0].tag.rpartition(":")[0]
            space = "" if rdf else f' xmlns:rdf="{RDF}"'  # what the description has no prefix for
            rdf = rdf or "rdf"
            items = "".join(f"<{rdf}:li>{escape(each)}</{rdf}:li>" for each in keywords)
            bag = f'<dc:subject xmlns:dc="{DC}"{space}><{rdf}:Bag>{items}</{rdf}:Bag></dc:subject>'
            added.append((descriptions[0], bag))
    for element, text in sorted(added, key=lambda each: -each[0].end):  # the last first, so that the others stay put
        if not text:
            continue
        if element.empty:
            head = content[: element.end].removesuffix(b"/>").rstrip()
            text = f">{text}</{element.tag}>"
        else:
            head = content[: element.end]
        content = head + text.encode() + content[element.end :]
    return content
