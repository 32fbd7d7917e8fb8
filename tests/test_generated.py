"""Generated files are what their sources give."""

import subprocess
import sys
from pathlib import Path

WIRE = Path(__file__).parent.parent / "libs" / "common" / "tinsmith_common" / "wire"


def test_the_protobuf_code_is_what_the_proto_file_gives(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I.",
        f"--python_out={tmp_path}",
        f"--pyi_out={tmp_path}",
    ]
    subprocess.run([*command, "tinsmith_wire.proto"], cwd=WIRE, check=True)
    generated = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert generated == {name: (WIRE / name).read_text() for name in generated}
