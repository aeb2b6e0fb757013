"""Builds small networks of every kind that UNet2DModel knows, records what diffusers makes of them in float64 (outputs and the
gradients of a loss), and checks warpdiff against it: `verify`, and what `convert` writes.

    python check_architectures.py WARPDIFF [NAME...]
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

import check_convert

PLAIN = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
SKIP = {
    "sample_size": 8,
    "block_out_channels": [32, 64, 32],
    "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"],
    "up_block_types": ["SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"],
    "layers_per_block": 2,
    "norm_num_groups": None,
    "attention_head_dim": None,
}
K = {
    "sample_size": [8, 16],
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["KDownBlock2D"] * 3,
    "up_block_types": ["KUpBlock2D"] * 3,
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "attention_head_dim": 32,
}
RESNET = {
    **PLAIN,
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
}
ARCHITECTURES = {
    "skip": SKIP,
    "skip-scale-shift": {**SKIP, "resnet_time_scale_shift": "scale_shift", "act_fn": "mish", "norm_num_groups": 16},
    "skip-fourier": {**SKIP, "time_embedding_type": "fourier", "center_input_sample": True, "mid_block_scale_factor": 2**0.5},
    "k": K,
    "k-gelu-classes": {**K, "act_fn": "gelu", "num_class_embeds": 5, "mid_block_type": None},
    "k-three-layers": {**K, "layers_per_block": 3, "act_fn": "mish", "add_attention": False},
    "resnet-samplers": RESNET,
    "resnet-middle-norm": {**RESNET, "attn_norm_num_groups": 8, "mid_block_scale_factor": 1.5, "act_fn": "Mish"},
    "learned": {**PLAIN, "time_embedding_type": "learned", "num_train_timesteps": 1000},
    "learned-labels": {
        **PLAIN, "time_embedding_type": "learned", "num_train_timesteps": 1000, "class_embed_type": "timestep",
    },
    "positional-labels": {**PLAIN, "class_embed_type": "timestep", "act_fn": "gelu", "flip_sin_to_cos": False},
    "fourier-labels": {**PLAIN, "time_embedding_type": "fourier", "class_embed_type": "timestep"},
    "identity-labels": {**PLAIN, "class_embed_type": "identity", "time_embedding_dim": 24, "act_fn": "swish"},
    "no-middle": {**PLAIN, "mid_block_type": None, "center_input_sample": True, "downsample_padding": 0},
    "mid-without-attention": {**PLAIN, "add_attention": False, "freq_shift": 1, "layers_per_block": 2},
}
SCHEDULE = {"beta_schedule": "linear", "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


def labels_of(model, count):
    if model.config.class_embed_type == "identity":
        return torch.randn(count, model.time_embedding.linear_2.out_features)
    if model.config.class_embed_type == "timestep":
        return torch.tensor([3, 417] if model.config.time_embedding_type == "learned" else [3.0, 417.0])
    return torch.tensor([0, 4]) if model.config.num_class_embeds else None


def record(name, config, folder):
    """A golden case of a network with random weights."""
    torch.manual_seed(sum(name.encode()))
    model = UNet2DModel(**config)
    with torch.no_grad():
        for tensor in model.parameters():
            # Norms start as the identity, which would hide a swapped weight and bias.
            tensor.add_(0.1 * torch.randn_like(tensor))
    model.save_pretrained(folder / "model")
    exact = model.double().eval()
    # The sinusoids are float32 in diffusers whatever the rest is, and of labels they are not converted.
    exact.time_proj.register_forward_hook(lambda module, inputs, output: output.double())
    size = config["sample_size"] if isinstance(config["sample_size"], list) else [config["sample_size"]] * 2
    x, noise = torch.randn(2, 2, model.config.in_channels, *size).unbind(0)
    t = torch.tensor([1.0, 30.0] if config.get("time_embedding_type") == "fourier" else [7, 900])
    labels = labels_of(model, 2)
    wide = labels.double() if labels is not None and labels.is_floating_point() else labels
    out = exact(x.double(), t.double() if t.is_floating_point() else t, wide).sample
    loss = ((out - noise.double()) ** 2).mean()
    loss.backward()
    tensors = {"x": x, "t": t, "out": out.detach(), "noise": noise, "x0": x, "loss": loss.detach().reshape(1)}
    given = {"sample": "x", "timesteps": "t"}
    known = {"x0": "x0", "x_t": "x", "noise": "noise", "timesteps": "t"}
    if labels is not None:
        tensors["labels"] = labels
        given["class_labels"] = known["class_labels"] = "labels"
    squares = 0.0
    for key, parameter in exact.named_parameters():
        if parameter.grad is not None:
            tensors[f"grad.{key}"] = parameter.grad
            squares += parameter.grad.square().sum().item()
    tensors = {k: v.float().contiguous() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file({k: v.clone() for k, v in tensors.items()}, folder / "golden.safetensors")
    checks = [
        {"id": "forward", "type": "forward", "inputs": given, "outputs": {"sample": "out"}, "tol_rel_fp32": 2e-5},
        {
            "id": "grad", "type": "grad", "loss": "mse: mean((out - noise)^2)", "schedule": SCHEDULE, "inputs": known,
            "outputs": {"out": "out", "loss": "loss", "grads_prefix": "grad."}, "total_grad_norm": squares**0.5,
            "tol_rel_fp32": 1e-4,
        },
    ]
    if "learned" in name and "labels" in name:
        del checks[1]  # One table for times and labels: sampled, not trained.
    case = {"name": name, "model_dir": "model", "golden": "golden.safetensors", "checks": checks}
    (folder / "case.json").write_text(json.dumps(case))


def main(program, names):
    for name in names or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place) / name
            folder.mkdir()
            record(name, ARCHITECTURES[name], folder)
            for device in ["ref", "cpu"]:
                subprocess.run([program, "verify", folder, "--device", device], check=True)
            check_convert.check(program, folder)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
