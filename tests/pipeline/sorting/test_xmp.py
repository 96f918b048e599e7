"""Keywords in sidecars: read back by another parser, and nothing else changes."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sorting.xmp import EMPTY, with_keywords

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DC = "{http://purl.org/dc/elements/1.1/}"
LR = "{http://ns.adobe.com/lightroom/1.0/}"
DIGIKAM = "{http://www.digikam.org/ns/1.0/}"
HEAD = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
SPACES = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'


def sidecar(inside, attributes="", head=HEAD, tail="</x:xmpmeta><?xpacket end='w'?>"):
    description = f'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" {attributes}'
    description += f">{inside}</rdf:Description>" if inside is not None else "/>"
    return f"{head}<rdf:RDF {SPACES}>{description}</rdf:RDF>{tail}".encode()


def keywords(content, name=f"{DC}subject"):
    return [each.text for each in ElementTree.fromstring(content).iterfind(f".//{name}/*/{RDF}li")]


printable = (
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn", "Zl", "Zp")), min_size=1).map(str.strip).filter(bool)
)


@given(printable, printable)
def test_any_names_come_back_from_a_new_sidecar(one, other):
    made = with_keywords(EMPTY, (one, other))
    assert keywords(made) == [one, other]
    assert with_keywords(made, (other,)) == made


def test_a_new_sidecar_is_what_exiv2_takes_for_one():
    # exiv2 looks for the declaration and then for this element, at the start.
    assert re.match(rb'<\?xml version="1.0" encoding="UTF-8"\?>\s*<x:xmpmeta ', with_keywords(EMPTY, ("a",)))


BAG = "<dc:subject><rdf:Bag><rdf:li>old</rdf:li></rdf:Bag></dc:subject>"


@pytest.mark.parametrize(("before", "expected"), [
    (sidecar("<crs:A xmlns:crs='c'>1</crs:A>"), ["new"]),
    (sidecar(None, 'xmlns:xmp="x" xmp:Rating="5"'), ["new"]),
    (sidecar("\n  "), ["new"]),
    (sidecar(BAG), ["old", "new"]),
    (sidecar(BAG.replace("<rdf:Bag><rdf:li>old</rdf:li></rdf:Bag>", "<rdf:Bag/>")), ["new"]),
    (sidecar(BAG.replace("rdf:Bag", "rdf:Seq")), ["old", "new"]),
    (sidecar(BAG.replace("old", "new")), ["new"]),
    (sidecar(BAG.replace("old", "a &amp; b").replace("<rdf:li>", "<!-- note --><rdf:li>")), ["a & b", "new"]),
    (b"\xef\xbb\xbf" + sidecar("", head=HEAD.replace("\ufeff", "")), ["new"]),
    (b'<?xml version="1.0" encoding="utf-8"?>\n' + sidecar("ä ö"), ["new"]),
])  # fmt: skip
def test_a_sidecar_gets_the_keyword_and_keeps_all_its_bytes(before, expected):
    after = with_keywords(before, ("new",))
    assert keywords(after) == expected
    # What is left without the added text is the old sidecar; an empty tag may have been opened for it.
    for added in (r"<rdf:li>new</rdf:li>", r"<dc:subject [^>]*><rdf:Bag></rdf:Bag></dc:subject>"):
        after = re.sub(added.encode(), b"", after)
    opened = after.replace(b"<rdf:Bag></rdf:Bag>", b"<rdf:Bag/>"), after.replace(b"></rdf:Description>", b"/>")
    assert before.replace(b"<rdf:li>new</rdf:li>", b"") in (after, *opened)


def test_lists_that_programs_prefer_get_it_too_if_they_are_there():
    lists = (
        '<lr:hierarchicalSubject xmlns:lr="http://ns.adobe.com/lightroom/1.0/"><rdf:Bag><rdf:li>a|b</rdf:li></rdf:Bag>'
        '</lr:hierarchicalSubject><digiKam:TagsList xmlns:digiKam="http://www.digikam.org/ns/1.0/"><rdf:Seq>'
        "<rdf:li>a/b</rdf:li></rdf:Seq></digiKam:TagsList>"
    )
    made = with_keywords(sidecar(BAG + lists), ("new",))
    assert keywords(made) == ["old", "new"]
    assert keywords(made, f"{LR}hierarchicalSubject") == ["a|b", "new"]
    assert keywords(made, f"{DIGIKAM}TagsList") == ["a/b", "new"]
    assert keywords(with_keywords(sidecar(""), ("new",)), f"{LR}hierarchicalSubject") == []


def test_without_a_prefix_there_is_one():
    bare = b'<RDF xmlns="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><Description/></RDF>'
    assert keywords(with_keywords(bare, ("new",))) == ["new"]
    other = sidecar("").replace(b"rdf:", b"r:").replace(b"xmlns:rdf", b"xmlns:r")
    assert keywords(with_keywords(other, ("new",))) == ["new"]


def test_other_prefixes_are_kept():
    other = sidecar(BAG).replace(b"rdf:", b"r:").replace(b"xmlns:rdf", b"xmlns:r")
    assert keywords(with_keywords(other, ("new",))) == ["old", "new"]
    bare = (
        b'<RDF xmlns="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><Description><s xmlns="http://purl.org/dc/elements/1.1/"'
        b'/><d:subject xmlns:d="http://purl.org/dc/elements/1.1/"><Bag><li>old</li></Bag></d:subject></Description></RDF>'
    )
    assert keywords(with_keywords(bare, ("new",))) == ["old", "new"]


@pytest.mark.parametrize("content", [
    b"", b"notes", b"<x/>", b"\xff\xd8\xff\xe0", sidecar("")[:-30], sidecar("", 'dc:subject="old"'),
    sidecar("<dc:subject>old</dc:subject>"), sidecar("").decode().encode("utf-16"),
    sidecar("", head='<?xml version="1.0" encoding="latin-1"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'),
    sidecar("", head='<!DOCTYPE a [<!ENTITY b "c">]><x:xmpmeta xmlns:x="adobe:ns:meta/">'),
    f"<rdf:RDF {SPACES}/>".encode(),
])  # fmt: skip
def test_what_is_no_xmp_is_left_alone(content):
    assert with_keywords(content, ("new",)) is None
