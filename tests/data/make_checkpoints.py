"""Writes checkpoints/: small files of torch.save in every form it has, and what is in them.

    python make_checkpoints.py

The files that run code when Python loads them (bad_*.pt) only print a word.
"""

import collections
import json
import os
import pathlib

import numpy as np
import torch

OUT = pathlib.Path(__file__).parent / "checkpoints"


class Module(torch.nn.Module):
    """state_dict() of a module carries _metadata, an attribute of the dict."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 3)
        self.norm = torch.nn.BatchNorm2d(3)


def tensors():
    torch.manual_seed(0)
    state = Module().state_dict()
    base = torch.arange(60, dtype=torch.float32) * 0.25 - 3
    state["transposed"] = base[:12].view(3, 4).t()
    state["middle"] = base[10:30].view(4, 5)[1:3, 1:4]
    state["repeated"] = base[5:7].expand(3, 2)
    state["channels_last"] = base[:48].view(1, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    state["scalar"] = torch.tensor(-1.5)
    state["empty"] = torch.zeros(0, 4)
    state["parameter"] = torch.nn.Parameter(base[:4].clone())
    for name in ["float64", "float16", "bfloat16"]:
        state[name] = (base[:6] / 3).to(getattr(torch, name))
    for name, low in [("int64", -(2**40)), ("int32", -(2**30)), ("int16", -300), ("int8", -100), ("uint8", 200)]:
        state[name] = torch.tensor([low, 0, 7], dtype=getattr(torch, name))
    return state


def write(name, state, **options):
    # The name of the archive's folder follows the file's.
    torch.save(state, OUT / name, **options)


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Attributes:
    def __init__(self):
        self.x = 1


class Stateful(collections.OrderedDict):
    pass


def main():
    OUT.mkdir(exist_ok=True)
    state = tensors()
    values = {
        name: {"dtype": str(tensor.dtype)[6:], "shape": list(tensor.shape), "values": tensor.double().flatten().tolist()}
        for name, tensor in state.items()
    }
    (OUT / "expected.json").write_text(json.dumps(values) + "\n")
    for protocol in [2, 4, 5]:
        write(f"zip{protocol}.pt", state, pickle_protocol=protocol)
        write(f"legacy{protocol}.pt", state, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    more = dict(state, step=3, note="text", rate=0.5, huge=2**90, nothing=None, names={"a", "b"}, raw=b"\x00\xff")
    more |= {"dtype": torch.float16, "shape": torch.Size([2, 3]), "flag": True, 7: "seven"}
    write("zip_more.pt", more)
    write("legacy_more.pt", more, _use_new_zipfile_serialization=False)
    write("bool.pt", {"mask": torch.tensor([True, False])})
    write("groups.pt", {"model": dict(a=torch.ones(1)), "ema": dict(a=torch.ones(1)), "step": 3})

    a = {"a": torch.ones(2)}
    write("bad_system.pt", a | {"zz": Runs(os.system, "echo EXECUTED")})
    write("bad_legacy_eval.pt", a | {"zz": Runs(eval, "print('EXECUTED')")}, _use_new_zipfile_serialization=False)
    write("bad_stack_global.pt", a | {"zz": Runs(os.system, "echo EXECUTED")}, pickle_protocol=4)
    write("bad_numpy.pt", a | {"zz": np.float64(1)})
    write("bad_object.pt", a | {"zz": Attributes()})
    write("bad_subclass.pt", Stateful(a))
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(OUT / "bad_torchscript.pt"))


if __name__ == "__main__":
    main()
