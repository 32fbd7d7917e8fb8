"""`make compatibility`: tries every SDK version and writes docs/compatibility.md; `--check` compares instead."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tinsmith_local import Stack, StackConfig
from tools.compatibility.page import PAGE, render
from tools.compatibility.run import VersionResult, try_version
from tools.compatibility.sdks import VERSIONS, make_environment
from tools.packages import SetupError


def main() -> int:
    """Run; returns the process's exit status: 1 when a version fails, or the page is stale with `--check`."""
    parser = argparse.ArgumentParser(prog="python -m tools.compatibility", description=__doc__)
    parser.add_argument(
        "versions", nargs="*", metavar="VERSION", help=f"{', '.join(VERSIONS)} (default: all)"
    )
    parser.add_argument("--check", action="store_true", help="fail when the page differs from this run")
    options = parser.parse_args()
    versions: list[str] = options.versions or list(VERSIONS)
    try:
        for version in versions:
            make_environment(version)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    results = _try_all(versions)
    failures = [failure for result in results for failure in result.failures]
    print("\n".join(failures) or f"Everything works with {', '.join(versions)}.")
    if tuple(versions) == VERSIONS and not _page_is_right(render(results), check=options.check):
        return 1
    return 1 if failures else 0


def _try_all(versions: list[str]) -> list[VersionResult]:
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(StackConfig(port=0, data_dir=Path(folder))) as stack,
    ):
        results: list[VersionResult] = []
        for version in versions:
            print(f"tinker {version} …", flush=True)
            results.append(try_version(stack, version))
        return results


def _page_is_right(page: str, *, check: bool) -> bool:
    if not check:
        PAGE.write_text(page)
    elif not PAGE.is_file() or PAGE.read_text() != page:
        print("docs/compatibility.md is stale: run `make compatibility` and commit it.", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
