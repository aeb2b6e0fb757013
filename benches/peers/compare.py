#!/usr/bin/env python3
"""Runs `warpdiff bench unet` and PyTorch in turn on one machine and prints the ratio of their speeds.

    cargo build --release
    benches/peers/compare.py --python python-with-torch

One round of a workload is A P1 P2 .. P2 P1 A: A is warpdiff, the P are PyTorch's variants (eager with NCHW and with
channels-last tensors, and with --compile both compiled). Each run is a process of its own, so that its peak memory is
its own and a slow drift of the machine hits all alike. The peer of a workload is the variant with the highest median;
it gives two pairs a round, each with its ratio: above 1 warpdiff is faster.

The results go to benches/results/, with what is known of the machine and its load when each run began.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).resolve().with_name("bench_peer.py")
MIB = 2**20

# (preset, training, batch sizes): what runs unless --workload says otherwise.
WORKLOADS = ["ddpm-cifar10-32:infer:1,4,16", "ddpm-cifar10-32:train:8", "digits-small:infer:1,64", "digits-small:train:64"]


def parse_workload(text):
    try:
        preset, mode, batches = text.split(":")
        if mode not in ("infer", "train"):
            raise ValueError
        return [(preset, mode == "train", int(batch)) for batch in batches.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not PRESET:infer|train:BATCH,BATCH,...") from None


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--warpdiff", type=Path, default=ROOT / "target/release/warpdiff", help="the release binary")
    parser.add_argument("--workload", action="append", type=parse_workload, metavar="PRESET:MODE:BATCHES",
                        help=f"may be repeated; by default {' '.join(WORKLOADS)}")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each workload")
    parser.add_argument("--seconds", type=float, default=10.0, help="time that each run measures for")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of both")
    parser.add_argument("--compile", action="store_true", help="torch.compile as further variants of the peer")
    parser.add_argument("--out", type=Path, help="results file; by default benches/results/COMMIT-TIME.json")
    return parser.parse_args()


def run(command):
    """Runs a benchmark process; returns its JSON report and the machine's load when it began."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        done = subprocess.run([*map(str, command), "--json", str(path)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"error: {' '.join(map(str, command))} exited with {done.returncode}:\n{done.stderr[-2000:]}")
        return json.loads(path.read_text()), load


def measure(args, who, workload):
    preset, train, batch = workload
    common = ["--preset", preset, "--batch", batch, "--threads", args.threads, "--seconds", args.seconds]
    common += ["--train"] if train else []
    if who == "warpdiff":
        command = [args.warpdiff, "bench", "unet", *common]
    else:
        mode, layout = who.split("-")
        command = [args.python, PEER, "--layout", layout, *common, *(["--compile"] if mode == "compile" else [])]
    report, load = run(command)
    row = report["results"][0]
    keep = ("ms", "ms_min", "ms_max", "runs", "img_s", "peak_rss_bytes")
    return {"who": who, "load": load, **{key: row[key] for key in keep}}, report


def compare(args, workload, variants):
    """All runs of one workload and what follows from them."""
    runs, torch = [], {}
    for _ in range(args.rounds):
        half = ["warpdiff", *variants]
        for who in half + half[::-1]:
            row, report = measure(args, who, workload)
            runs.append(row)
            if who != "warpdiff":
                torch = {key: report[key] for key in ("torch", "cpu_capability")}

    def of(who, key="img_s"):
        return [r[key] for r in runs if r["who"] == who]

    peer = max(variants, key=lambda who: statistics.median(of(who)))
    ratios = [a / b for a, b in zip(of("warpdiff"), of(peer))]
    preset, train, batch = workload
    return {
        "preset": preset, "train": train, "batch": batch, "peer": peer,
        "warpdiff_img_s": statistics.median(of("warpdiff")), "peer_img_s": statistics.median(of(peer)),
        "ratios": ratios, "ratio": statistics.median(ratios),
        "warpdiff_peak_rss_bytes": max(of("warpdiff", "peak_rss_bytes")),
        "peer_peak_rss_bytes": max(of(peer, "peak_rss_bytes")), "runs": runs,
    }, torch


def machine(args):
    cpu = platform.processor()
    match = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    git = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True, check=False)
    return {
        "cpu": match.group(1) if match else cpu, "threads": args.threads, "commit": git.stdout.strip() or "unknown",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def print_row(r):
    # A training step is counted as a step, an evaluation by its images.
    unit, per = ("step/s", r["batch"]) if r["train"] else ("img/s", 1)
    pairs = " ".join(f"{ratio:.2f}" for ratio in r["ratios"])
    print(
        f"{r['preset']:<16} {'train' if r['train'] else 'infer'} {r['batch']:>5} {unit:>7} "
        f"{r['warpdiff_img_s'] / per:>9.2f} {r['peer_img_s'] / per:>9.2f} {r['ratio']:>6.2f}  {pairs:<24} "
        f"{r['warpdiff_peak_rss_bytes'] / MIB:>8.0f} {r['peer_peak_rss_bytes'] / MIB:>8.0f}  {r['peer']}", flush=True,
    )


def main():
    args = arguments()
    if not args.warpdiff.is_file():
        sys.exit(f"error: {args.warpdiff} is not there; build it with `cargo build --release`, or name it with --warpdiff")
    workloads = [w for group in (args.workload or map(parse_workload, WORKLOADS)) for w in group]
    modes = ["eager", "compile"] if args.compile else ["eager"]
    variants = [f"{mode}-{layout}" for mode in modes for layout in ("nchw", "nhwc")]
    load = os.getloadavg()[0]
    if load > 0.5:
        # OpenMP threads that wait for each other lose more to a busy core than warpdiff's do: the ratio would flatter.
        print(f"warning: the load is {load:.1f} before the first run; on a busy machine the ratios mean little", file=sys.stderr)
    report = {**machine(args), "seconds": args.seconds, "rounds": args.rounds, "comparisons": []}
    print(f"{'preset':<16} {'step':<5} {'batch':>5} {'unit':>7} {'warpdiff':>9} {'peer':>9} {'ratio':>6}  "
          f"{'of each pair':<24} {'MiB':>8} {'peer MiB':>8}  peer")
    for workload in workloads:
        result, torch = compare(args, workload, variants)
        report.update(torch)
        report["comparisons"].append(result)
        print_row(result)
    out = args.out or ROOT / "benches/results" / f"{report['commit']}-{report['date'][:16].replace(':', '')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
