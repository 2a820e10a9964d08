"""The Python in README.md runs as it is printed, block after block."""

import pathlib
import re

import numpy as np
import pytest

from serving.model_server.model_config import ModelSettings
from serving.model_server.server import ModelServer

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"
# A line that says how a function is called: what it is called with.
ATTEND = {
    "query": np.ones((2, 3, 5), "float32"),
    "keys": np.ones((2, 7, 5), "float32"),
    "mask": np.ones((2, 3, 7), bool),
}


# Keras' own: "__array__ implementation doesn't accept a copy keyword", of its variables in `quantize`.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.slow
def test_readmes_python_runs_in_its_order(tmp_path, monkeypatch, free_port, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    ports = {"port": free_port(), "rest_api_port": free_port()}
    server, names = None, {**ATTEND, "values": ATTEND["keys"], "ports": ports}
    try:
        for number, block in enumerate(blocks):
            if "Client(" in block:  # what the commands between the blocks do
                server = ModelServer(
                    [ModelSettings("cooks", tmp_path / "exports" / "cooks")], host="127.0.0.1", **ports
                )
                server.start()
                block = block.replace("Client(", "Client(**ports, ")
            exec(compile(block, f"README.md, block {number}", "exec"), names)
    finally:
        if server is not None:
            server.stop()
    assert server is not None
    assert names["written"]["token_ids"].shape[:2] == (1, 4)
    out = capsys.readouterr().out
    assert out.count("le vieux cuisinier sourit") >= 2 and "largest difference 0.0e+00" in out
