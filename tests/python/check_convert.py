"""Loads what `warpdiff convert` writes with diffusers, and compares weights and outputs with those of the source.

    python check_convert.py WARPDIFF MODEL_OR_CASE...

WARPDIFF is the program. A model is a folder that diffusers loads, too; a golden case is a folder with case.json, whose recorded
outputs are compared as well. The weights must agree to the last bit, the outputs to 1e-5 of the largest.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file

TOLERANCE = 1e-5


def load(folder, **options):
    folder = pathlib.Path(folder)
    if not (folder / "config.json").is_file():
        folder = folder / "unet"
    safe = any(folder.glob("*.safetensors*"))
    return UNet2DModel.from_pretrained(folder, use_safetensors=safe, **options).eval()


def inputs(case, config):
    """Network inputs and, where they are recorded, outputs."""
    if case is not None:
        golden = load_file(case / "golden.safetensors")
        for check in json.loads((case / "case.json").read_text())["checks"]:
            if check["type"] == "forward":
                names = check["inputs"]
                given = [golden[names[key]] for key in ("sample", "timesteps")]
                labels = golden[names["class_labels"]] if names.get("class_labels") else None
                outputs = check["outputs"]
                yield (*given, labels, golden[next(iter(outputs.values()))])
        return
    generator = torch.Generator().manual_seed(0)
    size = config.sample_size if isinstance(config.sample_size, (list, tuple)) else [config.sample_size or 32] * 2
    labels = torch.tensor([0, 0]) if config.num_class_embeds else None
    yield torch.randn(2, config.in_channels, *size, generator=generator), torch.tensor([7, 900]), labels, None


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def check(program, path):
    path = pathlib.Path(path)
    case = path if (path / "case.json").is_file() else None
    source = path / "model" if case else path
    original = load(source, torch_dtype=torch.float32)
    expected = original.state_dict()
    worst = 0.0
    for dtype, name in [(torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")]:
        with tempfile.TemporaryDirectory() as folder:
            target = pathlib.Path(folder) / "converted"
            # Diffusers ignores what it does not know.
            command = [program, "convert", source, target, "--dtype", name, "--lenient", "--quiet"]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            converted = load(target, torch_dtype=dtype)
            state = converted.state_dict()
            assert state.keys() == expected.keys(), set(state) ^ set(expected)
            for tensor, values in expected.items():
                assert state[tensor].dtype == dtype and torch.equal(state[tensor], values.to(dtype)), (name, tensor)
            if (target / "model_index.json").is_file():
                DiffusionPipeline.from_pretrained(target)
            if dtype != torch.float32:
                continue
            with torch.no_grad():
                for sample, t, labels, recorded in inputs(case, original.config):
                    output = converted(sample, t, labels).sample
                    for other in [original(sample, t, labels).sample, recorded]:
                        worst = max(worst, difference(output, other) if other is not None else 0.0)
    assert worst <= TOLERANCE, worst
    print(f"{path.name}: {len(expected)} tensors bit for bit, outputs within {worst:.1e}")


if __name__ == "__main__":
    for path in sys.argv[2:]:
        check(sys.argv[1], path)
