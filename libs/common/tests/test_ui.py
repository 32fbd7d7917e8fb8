"""The page's files: complete, self-contained, and readable in light and dark."""

import re
from importlib.resources import files

import httpx
import pytest
from fastapi import FastAPI

from tinsmith_common.http.ui_router import ui_router

FOLDER = files("tinsmith_common") / "ui"
NAMES = ("index.html", "app.js", "chart.js", "style.css")


def text(name: str) -> str:
    return (FOLDER / name).read_text()


async def test_the_page_and_every_file_that_it_names_are_served() -> None:
    app = FastAPI()
    app.include_router(ui_router())
    named = re.findall(r"(?:href|src)=\"(ui/[^\"]+)\"", text("index.html"))
    named += [f"ui/{name}" for name in re.findall(r"from \"\./([^\"]+)\"", text("app.js"))]
    assert sorted(named) == ["ui/app.js", "ui/chart.js", "ui/style.css"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://any") as client:
        kinds = {path: (await client.get(f"/{path}")).headers["content-type"] for path in ("ui", *named)}
        missing = await client.get("/ui/none.js")
    assert {path: kind.split(";")[0] for path, kind in kinds.items()} == {
        "ui": "text/html",
        "ui/app.js": "text/javascript",
        "ui/chart.js": "text/javascript",
        "ui/style.css": "text/css",
    }
    assert missing.status_code == 404


@pytest.mark.parametrize("name", NAMES)
def test_nothing_comes_from_anywhere_else(name: str) -> None:
    # SVG's namespace is a name, not an address.
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text(name)) == []


@pytest.mark.parametrize("name", ["app.js", "chart.js"])
def test_no_text_is_ever_taken_for_markup(name: str) -> None:
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text(name)) == []


def luminance(color: str) -> float:
    """Relative luminance by WCAG 2.1."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def schemes() -> list[dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", text("style.css"), re.DOTALL)
    return [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in blocks]


def test_there_is_a_light_and_a_dark_scheme_of_the_same_colours() -> None:
    light, dark = schemes()
    assert light.keys() == dark.keys()
    assert luminance(light["back"]) > luminance(light["text"])
    assert luminance(dark["back"]) < luminance(dark["text"])


@pytest.mark.parametrize("scheme", schemes(), ids=["light", "dark"])
@pytest.mark.parametrize("colour", ["text", "quiet", "accent", "good", "warn", "bad"])
@pytest.mark.parametrize("ground", ["back", "panel"])
def test_every_text_has_the_contrast_of_wcag_aa(scheme: dict[str, str], colour: str, ground: str) -> None:
    high, low = sorted((luminance(scheme[colour]), luminance(scheme[ground])), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= 4.5
