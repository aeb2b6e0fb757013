#!/usr/bin/env python3
"""PyTorch as a peer of `warpdiff bench unet` and `sample-loop`: the same networks, work and measuring protocol.

    bench_peer.py --preset ddpm-cifar10-32 --batch 1,16 --layout nhwc [--train | --loop 50] [--compile] [--json FILE]
    bench_peer.py --device cuda --precision bf16 --graph ...

A run is one evaluation of the network, or with --train one training step: noising, forward, backward, clipping to a
global norm of 1, fused AdamW and an exponential moving average. Each batch size is warmed up by two runs and then
measured for --seconds (at least 3 runs); `ms` is the median. With --loop a run is a whole batch of pictures: so many steps of
DDIM from noise to bytes on the host, by the host's clock. Needs torch alone.

Arithmetic is f32, on a GPU without TF32. With --precision bf16 inference runs on a network in bf16, training on f32
weights under autocast. GPU times come from events; --graph replays the evaluation, or a step of the loop, as a CUDA graph.
--autotune has torch.compile try every kernel that it knows, which takes minutes; without --graph it makes CUDA graphs itself.
"""

import argparse
import json
import math
import time

import torch
import torch.nn.functional as F
from torch import nn

PRESETS = {
    "ddpm-cifar10-32": dict(
        size=32, channels=3, widths=(128, 256, 256, 256), layers=2, attention=(False, True, False, False),
        head_dim=None, eps=1e-6, downsample_padding=0, cos_first=False, freq_shift=1,
    ),
    "digits-small": dict(
        size=8, channels=1, widths=(32, 64), layers=1, attention=(False, True),
        head_dim=8, eps=1e-5, downsample_padding=1, cos_first=True, freq_shift=0,
    ),
}
GROUPS = 32


# ---- The network. Parameter names are those of diffusers' UNet2DModel, so its weights load as they are.


class TimeEmbedding(nn.Module):
    def __init__(self, width, out, cos_first, freq_shift):
        super().__init__()
        half = width // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half) / (half - freq_shift))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.cos_first = cos_first
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, t):
        angles = t[:, None].float() * self.frequencies
        sin, cos = angles.sin(), angles.cos()
        x = torch.cat([cos, sin] if self.cos_first else [sin, cos], dim=1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(x)))


class Resnet(nn.Module):
    def __init__(self, c_in, c_out, time_width, eps):
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, c_out)
        self.norm2 = nn.GroupNorm(GROUPS, c_out, eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, time):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    def __init__(self, width, head_dim, eps):
        super().__init__()
        self.heads = width // (head_dim or width)
        self.group_norm = nn.GroupNorm(GROUPS, width, eps)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x):
        n, c, h, w = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (
            project(tokens).view(n, h * w, self.heads, c // self.heads).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c)
        return x + self.to_out[0](y).transpose(1, 2).reshape(n, c, h, w)


class Downsample(nn.Module):
    def __init__(self, width, padding):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=padding)

    def forward(self, x):
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Block(nn.Module):
    """Residual blocks of one level, attention after each where the level has it, and a resampler."""

    def __init__(self, resnets, attentions=(), **resampler):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        for name, module in resampler.items():
            setattr(self, name, nn.ModuleList([module] if module else []))

    def layer(self, i, x, time):
        x = self.resnets[i](x, time)
        return self.attentions[i](x) if len(self.attentions) > i else x


class UNet(nn.Module):
    def __init__(self, channels, widths, layers, attention, head_dim, eps, downsample_padding, cos_first, freq_shift, **_):
        super().__init__()
        time_width, last = 4 * widths[0], len(widths) - 1

        def resnet(c_in, c_out):
            return Resnet(c_in, c_out, time_width, eps)

        def attentions(width, count, used):
            return [Attention(width, head_dim, eps) for _ in range(count if used else 0)]

        self.time_embedding = TimeEmbedding(widths[0], time_width, cos_first, freq_shift)
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        width, skips = widths[0], [widths[0]]
        for i, out in enumerate(widths):
            resnets = [resnet(width if j == 0 else out, out) for j in range(layers)]
            down = Downsample(out, downsample_padding) if i < last else None
            self.down_blocks.append(Block(resnets, attentions(out, layers, attention[i]), downsamplers=down))
            width = out
            skips += [out] * (layers + (down is not None))
        self.mid_block = Block([resnet(width, width) for _ in range(2)], attentions(width, 1, True))
        self.up_blocks = nn.ModuleList()
        for i in range(last, -1, -1):
            out, resnets = widths[i], []
            for _ in range(layers + 1):
                resnets.append(resnet(width + skips.pop(), out))
                width = out
            up = Upsample(out) if i > 0 else None
            self.up_blocks.append(Block(resnets, attentions(out, layers + 1, attention[i]), upsamplers=up))
        self.conv_norm_out = nn.GroupNorm(GROUPS, widths[0], eps)
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, x, t):
        time = self.time_embedding(t)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            for i in range(len(block.resnets)):
                x = block.layer(i, x, time)
                skips.append(x)
            for downsample in block.downsamplers:
                x = downsample(x)
                skips.append(x)
        x = self.mid_block.layer(0, x, time)
        x = self.mid_block.layer(1, x, time)
        for block in self.up_blocks:
            for i in range(len(block.resnets)):
                x = block.layer(i, torch.cat([x, skips.pop()], dim=1), time)
            for upsample in block.upsamplers:
                x = upsample(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


# ---- The work that is measured.


class Place:
    """Where the work runs, and in which arithmetic."""

    def __init__(self, device, precision, layout):
        self.device, self.precision = device, precision
        self.format = torch.channels_last if layout == "nhwc" else torch.contiguous_format

    def put(self, it, dtype=None):
        return it.to(device=self.device, dtype=dtype, memory_format=self.format)

    def evaluation_type(self):
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self):
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


def build(preset, place):
    torch.manual_seed(1)
    return place.put(UNet(**preset))


def images(preset, batch, place):
    return place.put(torch.randn(batch, preset["channels"], preset["size"], preset["size"]))


def forward_run(model, network, x, place):
    model.eval().to(place.evaluation_type())
    x = x.to(place.evaluation_type())
    t = torch.full((x.shape[0],), 500, device=x.device)

    def run():
        with torch.inference_mode():
            network(x, t)

    return run


def as_graph(run):
    """The same work as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def training_run(model, network, x0, place):
    model.train()
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=1e-2, fused=True)
    alpha_bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float().to(x0.device)
    x0 = x0.clamp(-1, 1)

    def run():
        t = torch.randint(0, 1000, (x0.shape[0],), device=x0.device)
        eps = torch.randn_like(x0)
        alpha_bar = alpha_bars[t].view(-1, 1, 1, 1)
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
        with place.autocast():
            out = network(x_t, t)
        F.mse_loss(out.float(), eps).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-4)

    return run


def loop_run(model, network, noise, place, steps, graph):
    """DDIM in the order of diffusers: timesteps with leading spacing, x_0 clamped to [-1, 1]."""
    model.eval().to(place.evaluation_type())
    alpha_bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    timesteps = torch.arange(steps - 1, -1, -1) * (1000 // steps)
    before = timesteps - 1000 // steps
    now, then = alpha_bars[timesteps], torch.where(before >= 0, alpha_bars[before.clamp(min=0)], 1.0)
    # Of each step: the timestep, 1 / sqrt(alpha_bar) and its factor of eps, then those of x_0 and eps in the next x.
    rows = torch.stack([timesteps.double(), now.rsqrt(), ((1 - now) / now).sqrt(), then.sqrt(), (1 - then).sqrt()], dim=1)
    rows = rows.float().to(noise.device)
    x, index = noise.clone(), torch.zeros(1, dtype=torch.long, device=noise.device)

    def step():
        with torch.inference_mode():
            t, over, eps, x0_next, eps_next = rows.index_select(0, index)[0].unbind()
            out = network(x.to(place.evaluation_type()), t.expand(x.shape[0])).float()
            x.copy_(x0_next * (over * x - eps * out).clamp(-1, 1) + eps_next * out)
            index.add_(1)

    def begin():
        with torch.inference_mode():
            x.copy_(noise)
            index.zero_()

    if steps < 4 and graph:
        raise SystemExit("a CUDA graph warms up with three steps: --loop 4 at least")
    replay = as_graph(step) if graph else step

    def run():
        begin()
        for _ in range(steps):
            replay()
        with torch.inference_mode():
            return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()

    return run


def clock(run):
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def events(run):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def measure(run, seconds, timer):
    """Milliseconds of each run, sorted, after a warm-up."""
    for _ in range(2):
        timer(run)
    start, times = time.perf_counter(), []
    while len(times) < 3 or (time.perf_counter() - start < seconds and len(times) < 1000):
        times.append(timer(run))
    return sorted(times)


def peak_rss_bytes():
    """The largest resident size of this process; getrusage would also count the process that started it."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="ddpm-cifar10-32")
    parser.add_argument("--batch", default="1,4,16", help="batch sizes, separated by commas")
    parser.add_argument("--layout", choices=("nchw", "nhwc"), default="nhwc")
    parser.add_argument("--train", action="store_true", help="measure training steps")
    parser.add_argument("--loop", type=int, metavar="STEPS", help="measure whole batches of pictures: DDIM in so many steps")
    parser.add_argument("--compile", action="store_true", help="torch.compile instead of eager")
    parser.add_argument("--autotune", action="store_true", help="compile, trying every kernel: minutes on a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--graph", action="store_true", help="evaluations as a CUDA graph")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=10.0, help="time to measure each batch size for")
    parser.add_argument("--json", help="write the results here, too")
    args = parser.parse_args()
    if args.graph and (args.train or args.device != "cuda"):
        parser.error("--graph is for evaluations on --device cuda")
    if args.loop is not None and (args.train or not 1 <= args.loop <= 1000):
        parser.error("--loop takes 1 to 1000 steps, and no --train")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    place = Place(args.device, args.precision, args.layout)
    timer = events if args.device == "cuda" and args.loop is None else clock
    # CUDA graphs by torch.compile, unless they are made here.
    tuned = "max-autotune" if args.device == "cuda" and not args.graph else "max-autotune-no-cudagraphs"
    mode = "autotune" if args.autotune else "compile" if args.compile else "eager"

    preset, results = PRESETS[args.preset], []
    for batch in map(int, args.batch.split(",")):
        model = build(preset, place)
        network = model
        if mode != "eager":
            network = torch.compile(model, dynamic=False, mode=tuned if args.autotune else None)
        x = images(preset, batch, place)
        if args.loop is not None:
            run = loop_run(model, network, x, place, args.loop, args.graph)
        elif args.train:
            run = training_run(model, network, x, place)
        else:
            run = forward_run(model, network, x, place)
            run = as_graph(run) if args.graph else run
        times = measure(run, args.seconds, timer)
        ms = times[len(times) // 2]
        row = {
            "preset": args.preset, "train": args.train, "batch": batch, "layout": args.layout,
            "mode": mode + ("-graph" if args.graph else ""), "steps": args.loop,
            "device": args.device, "precision": args.precision,
            "ms": ms, "ms_min": times[0], "ms_max": times[-1], "runs": len(times), "img_s": batch / ms * 1e3,
            "parameters": sum(p.numel() for p in model.parameters()), "peak_rss_bytes": peak_rss_bytes(),
        }
        results.append(row)
        what = "train" if args.train else "loop" if args.loop else "infer"
        print(
            f"{args.preset:<16} {what} batch {batch:>4} {args.layout} {row['mode']:<7} "
            f"{ms:>9.2f} ms {row['img_s']:>9.2f} img/s {row['peak_rss_bytes'] / 2**20:>6.0f} MiB", flush=True,
        )
    if args.json:
        gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
        report = {"torch": torch.__version__, "gpu": gpu, "threads": torch.get_num_threads(),
                  "cpu_capability": torch.backends.cpu.get_cpu_capability(), "results": results}
        with open(args.json, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
