"""Runs the parts of a session one after the other, each within its time, and keeps what came of them: see run."""

import datetime
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
WARPDIFF = HERE / "warpdiff"
LOGS = HERE / "logs"
# Kept for the table and the JSON at the end.
RESERVE = 5.0


class Session:
    """Runs parts until the time is over and keeps what came of them."""

    def __init__(self, minutes, path, append):
        self.begin, self.limit, self.path = time.monotonic(), 60.0 * minutes, path
        self.report = {"machine": machine(), "manifest": read_json(HERE / "manifest.json"), "parts": []}
        before = read_json(path) if append else None
        if before:
            self.report = {**before, "continued": self.report["machine"]}

    def left(self):
        return self.limit - RESERVE - (time.monotonic() - self.begin)

    def add(self, name, status, reason="", seconds=0.0, **figures):
        part = {"name": name, "status": status, "reason": reason, "seconds": round(seconds, 2), **figures}
        self.report["parts"].append(part)
        self.report["seconds"] = round(time.monotonic() - self.begin, 2)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.report, indent=1) + "\n")
        partial.replace(self.path)
        print(f"{status:<8} {name}{': ' + reason if reason else ''}", flush=True)
        return part

    def run(self, name, command, limit, environment=None, report=None, skip=None):
        """Runs a command; returns its part, with its output and its JSON report, if it wrote one to the path `report`.

        `skip` is a status that stands for "skipped", and the reason to give, if it is not that of the failure.
        """
        limit = min(limit, self.left())
        if limit < 2.0:
            return self.add(name, "skipped", "no time left"), "", None
        if report:
            command = [*command, "--json", report]
            report.unlink(missing_ok=True)
        log = LOGS / (re.sub(r"[^a-z0-9]+", "-", name.lower()) + ".txt")
        begin = time.monotonic()
        status, reason = execute(command, log, limit, environment)
        output = log.read_text(errors="replace")
        if status == "failed" and "timeout" not in reason:
            reason += last_line(output)
        if skip and status == skip[0]:
            status, reason = "skipped", skip[1] or reason
        part = self.add(name, status, reason, time.monotonic() - begin, log=str(log.relative_to(HERE)))
        return part, output, read_json(report) if report else None


def execute(command, log, limit, environment):
    """Runs a command with its output in a file; kills its process group when the time is over."""
    variables = {**os.environ, "WARPDIFF_BIN": str(WARPDIFF), "RUST_BACKTRACE": "1", **(environment or {})}
    with open(log, "wb") as file:
        try:
            process = subprocess.Popen(
                [str(word) for word in command], cwd=HERE, env=variables, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )
        except OSError as error:
            return "failed", str(error)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                # In the driver, where no signal reaches it; it is left behind.
                pass
            return "failed", f"timeout after {limit:.0f} s"
    return ("passed", "") if code == 0 else ("failed", f"exit code {code}")


def last_line(output):
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error") or "panicked" in line]
    line = (errors or lines or [""])[-1]
    return f": {line[:200]}" if line else ""


def read_json(path):
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None


def nvidia_smi():
    """What the driver's tool says of the GPU and its clocks, or None."""
    if not shutil.which("nvidia-smi"):
        return None
    fields = ["name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu"]
    try:
        query = ["nvidia-smi", "--query-gpu=" + ",".join(fields), "--format=csv,noheader,nounits"]
        text = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(fields, (value.strip() for value in text.splitlines()[0].split(",")))) if text.strip() else None


def machine():
    match = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"cpu": match.group(1) if match else platform.processor(), "gpu": nvidia_smi(),
            "date": now.isoformat(timespec="seconds"), "load": os.getloadavg()[0]}
