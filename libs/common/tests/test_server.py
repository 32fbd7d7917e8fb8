"""How a service's process is set up."""

import subprocess
import sys


def test_a_service_allows_itself_the_open_files_that_it_may_have() -> None:
    text = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096)); "
        "from tinsmith_common.http.server import raise_open_files; raise_open_files(); "
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    run = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "4096"
