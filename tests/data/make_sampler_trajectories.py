#!/usr/bin/env python3
"""Writes sampler_trajectories.json: the samplers of diffusers in float64 on an analytic model with given noise.

needs: torch, diffusers, numpy.  The noise schedule tables are recomputed in float64, so that the values show the
samplers' rules and not float32 rounding.

model(x, t)[i] = 0.7 x[i] cos(t / 300) - 0.3 sin(3 i + t / 100);  variance channel v(t)[i] = 0.9 sin(i + t / 50)
x_T[i] = 1.5 sin(1.3 i + 0.4);  noise of step j: z[i] = 1.2 cos(1.7 i + 2.3 j)
"""
import json, math, os
import numpy as np, torch
import diffusers.schedulers.scheduling_ddpm as ddpm_module
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

torch.set_default_dtype(torch.float64)
PIXELS = 12
NOISE = [None]
ddpm_module.randn_tensor = lambda shape, **_: NOISE[0]
idx = torch.arange(PIXELS, dtype=torch.float64)
shape = lambda v: v.reshape(1, 1, 3, 4)


def betas64(c):
    T = c["num_train_timesteps"]
    if c.get("trained_betas") is not None:
        b = np.array(c["trained_betas"])
    elif c["beta_schedule"] == "linear":
        b = np.linspace(c["beta_start"], c["beta_end"], T)
    elif c["beta_schedule"] == "scaled_linear":
        b = np.linspace(c["beta_start"] ** 0.5, c["beta_end"] ** 0.5, T) ** 2
    elif c["beta_schedule"] == "squaredcos_cap_v2":
        f = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        b = np.array([min(1 - f((i + 1) / T) / f(i / T), 0.999) for i in range(T)])
    elif c["beta_schedule"] == "laplace":
        lam = lambda u: -0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6)
        f = lambda u: math.sqrt(math.exp(lam(u)) / (1 + math.exp(lam(u))))
        b = np.array([min(1 - f((i + 1) / T) / f(i / T), 0.999) for i in range(T)])
    elif c["beta_schedule"] == "sigmoid":
        b = 1 / (1 + np.exp(-np.linspace(-6, 6, T))) * (c["beta_end"] - c["beta_start"]) + c["beta_start"]
    if c["rescale_betas_zero_snr"]:
        s = np.sqrt(np.cumprod(1 - b)); s0, sT = s[0], s[-1]
        ab = ((s - sT) * s0 / (s0 - sT)) ** 2
        b = 1 - np.concatenate([ab[:1], ab[1:] / ab[:-1]])
    return torch.from_numpy(b)


def run(cls, steps, eta=0.0, clipped=False, **options):
    s = cls(**options); c = dict(s.config)
    s.betas = betas64(c); s.alphas = 1 - s.betas; s.alphas_cumprod = torch.cumprod(s.alphas, 0)
    dpm = cls is DPMSolverMultistepScheduler
    if cls is DDPMScheduler: s.one = torch.tensor(1.0)
    if cls is DDIMScheduler: s.final_alpha_cumprod = torch.tensor(1.0) if c["set_alpha_to_one"] else s.alphas_cumprod[0]
    if dpm:
        if c["rescale_betas_zero_snr"]: s.alphas_cumprod[-1] = 2 ** -24
        s.lambda_t = 0.5 * (torch.log(s.alphas_cumprod) - torch.log(1 - s.alphas_cumprod))
    s.set_timesteps(steps)
    if dpm:
        sig = ((1 - s.alphas_cumprod) / s.alphas_cumprod) ** 0.5
        end = torch.zeros(1) if c["final_sigmas_type"] == "zero" else sig[:1]
        s.sigmas = torch.cat([sig[s.timesteps], end])
    x = shape(1.5 * torch.sin(1.3 * idx + 0.4))
    for j, t in enumerate(s.timesteps):
        t = int(t)
        m = 0.7 * x * math.cos(t / 300) - 0.3 * shape(torch.sin(3 * idx + t / 100))
        z = shape(1.2 * torch.cos(1.7 * idx + 2.3 * j)); NOISE[0] = z
        if cls is DDPMScheduler:
            v = 0.9 * shape(torch.sin(idx + t / 50))
            if c["variance_type"] == "learned": v = v.abs()
            if c["variance_type"] in ("learned", "learned_range"): m = torch.cat([m, v], 1)
            x = s.step(m, t, x).prev_sample
        elif cls is DDIMScheduler:
            x = s.step(m, t, x, eta=eta, use_clipped_model_output=clipped, variance_noise=z if eta > 0 else None).prev_sample
        else:   # DPMSolverMultistepScheduler.step upcasts to float32, so its parts are called
            if s.step_index is None: s._init_step_index(t)
            n, i = len(s.timesteps), s.step_index
            lower = i == n - 1 and (c["euler_at_final"] or (c["lower_order_final"] and n < 15) or c["final_sigmas_type"] == "zero")
            x0 = s.convert_model_output(m, sample=x)
            s.model_outputs = [*s.model_outputs[1:], x0]
            if c["solver_order"] == 1 or s.lower_order_nums < 1 or lower: x = s.dpm_solver_first_order_update(x0, sample=x)
            else: x = s.multistep_dpm_solver_second_order_update(s.model_outputs, sample=x)
            s.lower_order_nums = min(c["solver_order"], s.lower_order_nums + 1); s._step_index += 1
        assert x.dtype == torch.float64 and torch.isfinite(x).all(), (cls, options)
    return dict(scheduler=dict(_class_name=cls.__name__, **options), steps=steps, eta=eta, use_clipped_model_output=clipped,
                timesteps=[int(t) for t in s.timesteps], x=x.flatten().tolist())


P, I, M = DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler
V, S = dict(prediction_type="v_prediction"), dict(prediction_type="sample")
zero = dict(rescale_betas_zero_snr=True)
trained = [round(0.002 + 0.0001 * i ** 1.5, 6) for i in range(40)]
runs = [
    *[run(P, 9, variance_type=v) for v in ("fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range")],
    run(P, 7, steps_offset=1, timestep_spacing="leading", variance_type="fixed_large", clip_sample=False),
    run(P, 8, timestep_spacing="linspace", beta_schedule="sigmoid", clip_sample_range=1.5),
    run(P, 8, timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2", variance_type="learned_range", **V),
    run(P, 6, timestep_spacing="trailing", **zero, **V), run(P, 5, **S), run(P, 40, num_train_timesteps=40, trained_betas=trained),
    run(P, 10, beta_schedule="laplace", num_train_timesteps=200),
    run(P, 6, thresholding=True, dynamic_thresholding_ratio=0.8, sample_max_value=1.3),
    run(I, 10), run(I, 10, eta=1.0), run(I, 7, eta=0.4, clipped=True, beta_schedule="scaled_linear"),
    run(I, 7, eta=0.4, timestep_spacing="linspace", set_alpha_to_one=False, clip_sample=False),
    run(I, 9, eta=0.5, timestep_spacing="trailing", **zero, **V), run(I, 9, clipped=True, **V), run(I, 6, eta=0.8, steps_offset=1, **S),
    run(I, 8, thresholding=True, dynamic_thresholding_ratio=0.7, sample_max_value=1.2, eta=0.3),
    run(M, 10), run(M, 20), run(M, 17, solver_type="heun"), run(M, 8, solver_order=1, **V), run(M, 12, timestep_spacing="trailing", **zero, **V),
    run(M, 16, final_sigmas_type="sigma_min"), run(M, 9, final_sigmas_type="sigma_min", lower_order_final=False, solver_type="heun"),
    run(M, 16, final_sigmas_type="sigma_min", euler_at_final=True, timestep_spacing="leading", steps_offset=1, **S),
    run(M, 11, beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
    run(M, 11, beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-3.0, timestep_spacing="trailing"),
    run(M, 9, thresholding=True, dynamic_thresholding_ratio=0.75, sample_max_value=1.2),
]
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "sampler_trajectories.json"), "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(r) for r in runs) + "\n]\n")
print(len(runs), "runs")
