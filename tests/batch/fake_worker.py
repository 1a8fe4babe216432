"""A worker of a batch that converts nothing, at once: it does what the checkpoint's name says."""

import json
import os
import sys
import time
from pathlib import Path

HELD = []

for line in sys.stdin:
    asked = json.loads(line)
    name = asked["path"].rpartition("/")[2].partition(".")[0]
    if not asked["check"]:
        noted = Path(asked["log"] + ".processes")
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text(f"{os.getpid()}\n")
    print(json.dumps({"step": "capture"}), flush=True)
    if name.startswith("crash"):
        os.kill(os.getpid(), 11)
    if name.startswith("slow"):
        time.sleep(1)
    if name.startswith("hang"):
        time.sleep(600)
    if name.startswith("huge"):
        HELD.append(bytearray(700 * 2**20))
        time.sleep(600)
    if name.startswith("grows"):
        HELD.append(bytearray(300 * 2**20))
    if asked["check"]:
        bad = (
            {"code": "PTC3001", "what": "no mapping for aten.odd", "exit_status": 1} if name.startswith("odd") else None
        )
        checks = [{"format": format, "failure": bad if format == "onnx" else None} for format in asked["outputs"]]
        print(json.dumps({"outcome": {"checks": checks, "exit_status": 1 if bad else 0}}), flush=True)
        continue
    for path in map(Path, asked["outputs"].values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(asked["path"])
    status = "disagrees" if name.startswith("wrong") else "verified"
    proof = {"holds": status == "verified", "summary": "boxes differ"}
    artifacts = [
        {"format": format, "path": path if status == "verified" else None, "failure": None, "proofs": [proof]}
        for format, path in asked["outputs"].items()
    ]
    exit_status = 0 if status == "verified" else 3
    outcome = {"status": status, "exit_status": exit_status, "artifacts": artifacts}
    print(json.dumps({"outcome": outcome}), flush=True)
