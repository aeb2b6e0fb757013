#!/usr/bin/env python3
"""PyTorch as a peer of `warpdiff bench norm`, `attention`, `noise`, `sampler-step` and `optim`: the same lines.

    warpdiff bench norm --device cuda --precision bf16 --batch 128 --json norm.json
    bench_ops.py --lines norm.json --device cuda --precision bf16 --json norm-torch.json

Each line of the report is measured in every way that PyTorch has for it: eager in both layouts, torch.compile, every
backend of scaled_dot_product_attention, fused and foreach optimisers. The fastest is the peer; the others are in the JSON
with their times, and so is the reason of one that does not run. A line that PyTorch has no counterpart of is left out.

On a GPU the operation runs on as many copies of its operands as exceed twice the L2 cache, recorded as one CUDA graph, and
the time comes from events around replays. Gradients are recorded alone, after their forward pass. Needs torch alone.
"""

import argparse
import json
import statistics
import time

import torch
import torch._functorch.config

from operations import FAMILIES, Machine

BLOCK_MS = 4.0
LEAST_SAMPLES = 3


def warm_up(calls):
    """Runs calls three times beside the stream that records, as a CUDA graph asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)


def capture(calls, pool=None):
    """Some calls as one CUDA graph, with their results."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        results = [call() for call in calls]
    return graph, results


def timed(replay, machine, times):
    """Microseconds of so many replays."""
    if machine.device != "cuda":
        begin = time.perf_counter()
        for _ in range(times):
            replay()
        return (time.perf_counter() - begin) * 1e6
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3


def spread(values):
    """As warpdiff reports it: quartiles between the two neighbours of their rank."""
    values = sorted(values)

    def quantile(q):
        rank = q * (len(values) - 1)
        low, high = values[int(rank)], values[min(int(rank) + 1, len(values) - 1)]
        return low + (high - low) * (rank - int(rank))

    return {"median": quantile(0.5), "lower_quartile": quantile(0.25), "upper_quartile": quantile(0.75),
            "samples": len(values)}


def measure(prepare, size, machine, seconds):
    """Microseconds of one call; `prepare` makes the operands of a copy and returns a call, or a forward and a backward."""
    prepared = [prepare() for _ in range(machine.copies(size))]
    if isinstance(prepared[0], tuple):
        replay = backward(prepared, machine)
    elif machine.device == "cuda":
        warm_up(prepared)
        graph, kept = capture(prepared)
        replay = graph.replay
    else:
        replay = run_all(prepared)
    timed(replay, machine, 1)
    once = max(timed(replay, machine, 1), 0.1)
    times = max(1, min(20000, int(BLOCK_MS * 1e3 / once) + 1))
    values, begin = [], time.perf_counter()
    while len(values) < LEAST_SAMPLES or (time.perf_counter() - begin < seconds and len(values) < 1000):
        values.append(timed(replay, machine, times) / times / len(prepared))
    return spread(values)


def run_all(calls):
    def run():
        for call in calls:
            call()

    return run


def backward(pairs, machine):
    """Gradients alone: each pair is a forward pass and what makes the gradients of its results."""
    if machine.device != "cuda":
        results = [forward() for forward, _ in pairs]
        return run_all([lambda y=y, gradient=gradient: gradient(y) for y, (_, gradient) in zip(results, pairs)])
    # As torch.cuda.make_graphed_callables does it: the forward pass is recorded first, its gradient in the same memory. A
    # whole pass before lets compiled functions compile both halves.
    warm_up([lambda forward=forward, gradient=gradient: gradient(forward()) for forward, gradient in pairs])
    forwards, results = capture([forward for forward, _ in pairs])
    forwards.replay()
    graph, kept = capture(
        [lambda y=y, gradient=gradient: gradient(y) for y, (_, gradient) in zip(results, pairs)], forwards.pool())
    # The lambda holds what the recorded launches read and write.
    return lambda held=(forwards, results, kept): graph.replay()


def best(row, machine, seconds):
    """The fastest way of a line with all others; None where there is no way."""
    size, ways = row["bytes"], {}
    for name, prepare in FAMILIES[row["family"]](row, machine).items():
        try:
            ways[name] = measure(prepare, size, machine, seconds)
        except Exception as error:  # noqa: BLE001: a way that does not run is reported as such
            ways[name] = {"error": f"{type(error).__name__}: {error}"[:200]}
        if machine.device == "cuda":
            torch.cuda.empty_cache()
    if not ways:
        return None
    result = {key: row[key] for key in ("family", "network", "batch", "name", "pass")}
    ran = [name for name, way in ways.items() if "error" not in way]
    if ran:
        result["way"] = min(ran, key=lambda name: ways[name]["median"])
        result["us"] = ways[result["way"]]
    return {**result, "ways": ways}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lines", required=True, help="a report of warpdiff bench --json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes seconds a shape")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=0.1, help="time to measure each way of a line for")
    parser.add_argument("--budget", type=float, help="time for everything: lines that are not reached are left out")
    parser.add_argument("--json", help="write the results here, too; after each line")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(1)
    # Gradients are taken again and again from one forward pass.
    torch._functorch.config.donated_buffer = False
    machine = Machine(args.device, args.precision, not args.no_compile)
    with open(args.lines) as file:
        rows = [row for row in json.load(file)["results"] if row["family"] in FAMILIES and row["us"]]
    begin, results = time.perf_counter(), []
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    for row in rows:
        if args.budget is not None and time.perf_counter() - begin > args.budget:
            break
        result = best(row, machine, args.seconds)
        if result is None:
            continue
        results.append(result)
        ways = ", ".join(f"{name} {way['median']:.2f}" if "median" in way else f"{name} does not run"
                         for name, way in result["ways"].items())
        ratio = f"{result['us']['median'] / row['us']['median']:.2f}" if "us" in result else "-"
        print(f"{row['name']:<34} {row['pass']:<9} warpdiff {row['us']['median']:.2f} us, ratio {ratio}: {ways}", flush=True)
        if args.json:
            report = {"torch": torch.__version__, "gpu": gpu, "precision": args.precision, "planned": len(rows),
                      "threads": torch.get_num_threads(), "results": results}
            with open(args.json, "w") as file:
                json.dump(report, file, indent=1)
    ratios = [r["us"]["median"] / row["us"]["median"] for r in results for row in rows
              if "us" in r and all(r[key] == row[key] for key in ("family", "batch", "name", "pass"))]
    if ratios:
        print(f"{len(ratios)} lines compared, mean ratio {statistics.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    main()
