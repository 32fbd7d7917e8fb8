"""The page for people: plain files, the same for everybody. What it shows it reads with its reader's key."""

from importlib.resources import files

from fastapi import APIRouter, Response

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "chart.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
}
_HEADERS = {
    # Nothing but our own files runs, even if a name of a client's were ever taken for markup.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def ui_router() -> APIRouter:
    """`/ui` and its files, read once."""
    folder = files("tinsmith_common") / "ui"
    contents = {name: (folder / name).read_bytes() for name in _TYPES}
    router = APIRouter(include_in_schema=False)

    @router.get("/ui")
    async def page() -> Response:  # pyright: ignore[reportUnusedFunction]
        return _answer("index.html", contents)

    @router.get("/ui/{name}")
    async def file(name: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        return _answer(name, contents)

    return router


def _answer(name: str, contents: dict[str, bytes]) -> Response:
    if name not in contents:
        return Response(f"there is no {name!r} here", status_code=404, media_type="text/plain")
    return Response(contents[name], media_type=_TYPES[name], headers=_HEADERS)
