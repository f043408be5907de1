"""The page for people."""

import base64
import hashlib
import re
from importlib import resources

from starlette.responses import HTMLResponse


def respond() -> HTMLResponse:
    """The page, with headers that let it load and run nothing but itself."""
    text = resources.files("grood_jax.deploying.serving").joinpath("page.html").read_text("utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": _hash("script", text),
        "style-src": _hash("style", text),
        # The dropped image, which never leaves the browser but for /predict.
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return HTMLResponse(
        text,
        headers={
            "Content-Security-Policy": "; ".join(map(" ".join, policy.items())),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )


def _hash(tag: str, text: str) -> str:
    """What a policy calls the one inline element of a page that it allows."""
    (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digest = hashlib.sha256(inline.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
