"""The operations of warpdiff's lines in PyTorch, in every way that it has for them; see bench_ops.py."""

import math
import re

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import bench_peer

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# Layouts of an image.
FORMATS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}
# The largest operands of one line.
MEMORY = 8 << 30


class Machine:
    """Where operations run, and in which arithmetic."""

    def __init__(self, device, precision, use_compile):
        self.device, self.use_compile = device, use_compile
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.l2 = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 0

    def normal(self, *shape, dtype=None, layout="nhwc"):
        x = torch.randn(shape, device=self.device, dtype=dtype or self.dtype)
        return x.to(memory_format=FORMATS[layout]) if len(shape) == 4 else x

    def copies(self, size):
        least = 4 if self.l2 else 1
        return max(1, min(max(2 * self.l2 // size + 1, least), 256, MEMORY // size))

    def compiled(self, function):
        # Each shape is a graph of its own; after some recompilations dynamo would go on in eager mode without a word.
        torch._dynamo.reset()
        return torch.compile(function, dynamic=False, mode="max-autotune-no-cudagraphs" if self.l2 else None)

    def ways(self, function):
        """The function as it is, and compiled."""
        return {"eager": function, **({"compile": self.compiled(function)} if self.use_compile else {})}


# Each function takes a line and returns, by name, ways to prepare a copy.


def sizes(name, letters):
    """The numbers behind the letters of a name: n128h32w32c256g32."""
    found = dict(re.findall(r"([a-z])(\d+)", name))
    return [int(found[letter]) for letter in letters]


def norm(row, machine):
    if row["pass"] == "given":
        return {}
    n, h, w, c, groups = sizes(row["name"].split(".")[0], "nhwcg")
    silu, modulated = ".silu" in row["name"], ".modulated" in row["name"]
    gradient = row["pass"] == "backward"

    def compute(x, gamma, beta, scale_shift):
        y = F.group_norm(x, groups, gamma, beta, 1e-6)
        if modulated:
            scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
            y = y * (1 + scale) + shift
        return F.silu(y) if silu else y

    def way(function, layout):
        def prepare():
            x = machine.normal(n, c, h, w, layout=layout)
            rest = [machine.normal(c), machine.normal(c), machine.normal(n, 2 * c) if modulated else None]
            if not gradient:
                return no_gradient(lambda: function(x, *rest))
            inputs = [v.requires_grad_() for v in (x, *rest) if v is not None]
            dy = machine.normal(n, c, h, w, layout=layout)
            return (lambda: function(x, *rest)), lambda y: torch.autograd.grad(y, inputs, dy, retain_graph=True)

        return prepare

    return {f"{name} {layout}": way(f, layout) for name, f in machine.ways(compute).items() for layout in FORMATS}


def no_gradient(call):
    def run():
        with torch.no_grad():
            return call()

    return run


def attention(row, machine):
    n, tokens, c, heads = sizes(row["name"], "ntch")
    gradient = row["pass"] == "backward"

    def way(backend):
        def compute(qkv):
            q, k, v = qkv.view(n, tokens, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind()
            with sdpa_kernel([backend]):
                return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, c)

        def prepare():
            qkv = machine.normal(n, tokens, 3 * c)
            if not gradient:
                return no_gradient(lambda: compute(qkv))
            qkv.requires_grad_()
            dy = machine.normal(n, tokens, c)
            return (lambda: compute(qkv)), lambda y: torch.autograd.grad(y, qkv, dy, retain_graph=True)

        return prepare

    # It keeps all scores; where they take gigabytes it is out of the race.
    scores = n * heads * tokens**2 * machine.dtype.itemsize
    return {name: way(backend) for name, backend in BACKENDS.items() if name != "math" or scores < MEMORY // 8}


def schedule(machine):
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0).float().to(machine.device)


def noise(row, machine):
    n, h, w, c = sizes(row["name"].split(".")[0], "nhwc")
    if ".learned" in row["name"]:
        return {}
    alpha_bars = schedule(machine)

    def noising(x0):
        t = torch.randint(0, 1000, (n,), device=x0.device)
        eps = torch.randn_like(x0)
        alpha_bar = alpha_bars[t].view(-1, 1, 1, 1)
        return (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps).to(machine.dtype), t, eps

    def loss(out, eps):
        difference = out.float() - eps
        each = difference.square().mean(dim=(1, 2, 3))
        return each, (difference * (2 / out.numel())).to(out.dtype)

    def way(function):
        def prepare():
            image = machine.normal(n, c, h, w, dtype=torch.float32)
            if row["pass"] == "noising":
                return no_gradient(lambda: function(image))
            out = machine.normal(n, c, h, w)
            return no_gradient(lambda: function(out, image))

        return prepare

    ways = machine.ways(noising if row["pass"] == "noising" else loss)
    return {name: way(function) for name, function in ways.items()}


def sampler_step(row, machine):
    sampler, shape = re.fullmatch(r"(.*)\.(n\d+.*)", row["name"]).groups()
    n, h, w, c = sizes(shape, "nhwc")
    if sampler not in ("ddpm", "ddim", "dpm++", "ddim.guided", "ddpm.learned"):
        return {}
    at, before = (float(v) for v in schedule(machine)[[500, 480]])
    alpha = at / before
    mean_x0, mean_x = before**0.5 * (1 - alpha) / (1 - at), alpha**0.5 * (1 - before) / (1 - at)
    low, high = ((1 - before) / (1 - at) * (1 - alpha)), 1 - alpha

    def step(x, model, x0_previous):
        model = model.float()
        if sampler == "ddim.guided":
            conditional, other = model.chunk(2)
            model = other + 3.0 * (conditional - other)
        if sampler == "ddpm.learned":
            model, v = model.chunk(2, dim=1)
        x0 = ((x - (1 - at) ** 0.5 * model) / at**0.5).clamp(-1, 1)
        if sampler == "ddpm":
            x_next = mean_x0 * x0 + mean_x * x + low**0.5 * torch.randn_like(x)
        elif sampler == "ddpm.learned":
            share = (v + 1) / 2
            std = (0.5 * (share * math.log(high) + (1 - share) * math.log(low))).exp()
            x_next = mean_x0 * x0 + mean_x * x + std * torch.randn_like(x)
        elif sampler == "dpm++":
            x_next = 0.9 * x + 0.3 * x0 - 0.1 * x0_previous
        else:
            x_next = before**0.5 * x0 + (1 - before) ** 0.5 * model
        return x_next, x0, ((x_next + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def way(function):
        def prepare():
            x, x0 = (machine.normal(n, c, h, w, dtype=torch.float32) for _ in range(2))
            model = machine.normal(2 * n if "guided" in sampler else n, 2 * c if "learned" in sampler else c, h, w)
            return no_gradient(lambda: function(x, model, x0))

        return prepare

    return {name: way(function) for name, function in machine.ways(step).items()}


def optim(row, machine):
    preset = bench_peer.PRESETS.get(row["network"])
    shapes = [p.shape for p in bench_peer.UNet(**preset).parameters()] if preset else [(sizes(row["name"], "p")[0],)]

    def parameters():
        made = [torch.randn(shape, device=machine.device).requires_grad_() for shape in shapes]
        for p in made:
            p.grad = torch.randn_like(p)
        return made

    def total_norm():
        grads = [p.grad for p in parameters()]
        return no_gradient(lambda: torch.nn.utils.get_total_norm(grads, foreach=True))

    def adamw(scale_inside):
        def prepare():
            made = parameters()
            average = [p.detach().clone() for p in made]
            mirror = [p.detach().to(torch.bfloat16) for p in made] if machine.dtype == torch.bfloat16 else None
            # Fused AdamW keeps its counters on the device; a graph that records it asks for `capturable`, too.
            optimizer = torch.optim.AdamW(made, lr=1e-9, fused=True, capturable=machine.device == "cuda")
            scale = torch.ones((), device=machine.device)
            if scale_inside:
                # Where fused AdamW divides gradients by a scale, as it does for GradScaler: no pass of its own to clip.
                optimizer.grad_scale, optimizer.found_inf = scale, None

            def run():
                if not scale_inside:
                    torch._foreach_mul_([p.grad for p in made], scale)
                optimizer.step()
                torch._foreach_lerp_(average, made, 1e-4)
                if mirror:
                    torch._foreach_copy_(mirror, made)

            return no_gradient(run)

        return prepare

    if row["pass"] == "norm":
        return {"foreach": total_norm}
    return {"fused, clipped by foreach": adamw(False), "fused, clipped inside": adamw(True)}


FAMILIES = {"norm": norm, "attention": attention, "noise": noise, "sampler-step": sampler_step, "optim": optim}
