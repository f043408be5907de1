"""matplotlib's SVG as a part of a page, in the page's own colours."""

import re
from collections.abc import Mapping

TAG = re.compile(r"<[^>]*>")
"""A tag: in what matplotlib writes, neither text nor attributes hold either sign."""

DECIMALS = re.compile(r"(\d+\.\d{2})\d+")
IDENTITY = re.compile(r' id="([^"]*)"')
REFERENCE = re.compile(r'(url\(#|href="#)([^")]*)')


def for_page(svg: str, colours: Mapping[str, str], prefix: str) -> str:
    """An SVG element for a page of several.

    Args:
      svg: a file that matplotlib wrote.
      colours: what replaces which, as CSS has them.
      prefix: begins all identities in it, which must differ within a page.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used = {name for _, name in REFERENCE.findall("".join(TAG.findall(body)))}
    short = {name: f"{prefix}-{i}" for i, name in enumerate(sorted(used))}

    def identity(match: re.Match[str]) -> str:
        return f' id="{short[match[1]]}"' if match[1] in short else ""

    def reference(match: re.Match[str]) -> str:
        return match[1] + short[match[2]]

    def of_the_page(match: re.Match[str]) -> str:
        if match[0].startswith("<!--"):
            return ""
        tag = REFERENCE.sub(reference, IDENTITY.sub(identity, match[0]))
        if tag.startswith("<svg"):
            # Its size is the page's business.
            tag = re.sub(r' (width|height|xmlns(:xlink)?|version)="[^"]*"', "", tag)
            return tag.replace("<svg", '<svg aria-hidden="true"')
        for written, wanted in colours.items():
            tag = tag.replace(written, wanted)
        return DECIMALS.sub(r"\1", tag)

    return re.sub(r"\n\s*", "\n", TAG.sub(of_the_page, body)).strip()
