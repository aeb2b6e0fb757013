//! The released models by the names of their files, with the flags that they were published with.

use super::Flags;
use crate::model::ModelError;

/// What the unconditional and the LSUN models of 256x256 pixels share.
macro_rules! adm_256 {
    ($($more:literal),*) => {
        concat!(
            "--attention_resolutions 32,16,8 --diffusion_steps 1000 --image_size 256 --learn_sigma True \
             --noise_schedule linear --num_channels 256 --num_head_channels 64 --num_res_blocks 2 --resblock_updown True \
             --use_fp16 True --use_scale_shift_norm True ",
            $($more),*
        )
    };
}

macro_rules! adm_classifier {
    ($more:literal) => {
        concat!(
            "--classifier_attention_resolutions 32,16,8 --classifier_width 128 --classifier_pool attention \
             --classifier_resblock_updown True --classifier_use_scale_shift_norm True ",
            $more
        )
    };
}

macro_rules! improved_64 {
    ($more:literal) => {
        concat!(
            "--num_res_blocks 3 --learn_sigma True --diffusion_steps 4000 --noise_schedule cosine ",
            "--use_scale_shift_norm True --attention_resolutions 16,8 --num_heads 4 ",
            $more
        )
    };
}

macro_rules! improved_lsun {
    () => {
        "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 --learn_sigma True \
         --use_scale_shift_norm False --attention_resolutions 16 --diffusion_steps 1000 --noise_schedule linear \
         --rescale_learned_sigmas False --rescale_timesteps False"
    };
}

/// Name (the file's, without `.pt`) and flags.
const RELEASED: [(&str, &str); 23] = [
    (
        "64x64_diffusion",
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 --image_size 64 \
         --learn_sigma True --noise_schedule cosine --num_channels 192 --num_head_channels 64 --num_res_blocks 3 \
         --resblock_updown True --use_new_attention_order True --use_fp16 True --use_scale_shift_norm True",
    ),
    (
        "128x128_diffusion",
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --image_size 128 --learn_sigma True \
         --noise_schedule linear --num_channels 256 --num_heads 4 --num_res_blocks 2 --resblock_updown True --use_fp16 True \
         --use_scale_shift_norm True",
    ),
    ("256x256_diffusion", adm_256!("--class_cond True")),
    ("256x256_diffusion_uncond", adm_256!("--class_cond False")),
    (
        "512x512_diffusion",
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --image_size 512 --learn_sigma True \
         --noise_schedule linear --num_channels 256 --num_head_channels 64 --num_res_blocks 2 --resblock_updown True \
         --use_fp16 False --use_scale_shift_norm True",
    ),
    (
        "64_256_upsampler",
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --large_size 256 --small_size 64 \
         --learn_sigma True --noise_schedule linear --num_channels 192 --num_heads 4 --num_res_blocks 2 \
         --resblock_updown True --use_fp16 True --use_scale_shift_norm True",
    ),
    (
        "128_512_upsampler",
        "--attention_resolutions 32,16 --class_cond True --diffusion_steps 1000 --large_size 512 --small_size 128 \
         --learn_sigma True --noise_schedule linear --num_channels 192 --num_head_channels 64 --num_res_blocks 2 \
         --resblock_updown True --use_fp16 True --use_scale_shift_norm True",
    ),
    ("lsun_bedroom", adm_256!("--class_cond False --dropout 0.1")),
    ("lsun_cat", adm_256!("--class_cond False --dropout 0.1")),
    ("lsun_horse", adm_256!("--class_cond False --dropout 0.1")),
    ("lsun_horse_nodropout", adm_256!("--class_cond False")),
    ("64x64_classifier", adm_classifier!("--image_size 64 --classifier_depth 4")),
    ("128x128_classifier", adm_classifier!("--image_size 128 --classifier_depth 2")),
    ("256x256_classifier", adm_classifier!("--image_size 256 --classifier_depth 2")),
    ("512x512_classifier", adm_classifier!("--image_size 512 --classifier_depth 2")),
    (
        "imagenet64_uncond_100M_1500K",
        improved_64!("--image_size 64 --num_channels 128 --rescale_timesteps True --rescale_learned_sigmas True"),
    ),
    (
        "imagenet64_uncond_vlb_100M_1500K",
        improved_64!("--image_size 64 --num_channels 128 --rescale_timesteps True --use_kl True"),
    ),
    (
        "imagenet64_cond_270M_250K",
        improved_64!(
            "--image_size 64 --num_channels 192 --class_cond True --rescale_timesteps False --rescale_learned_sigmas False"
        ),
    ),
    (
        "cifar10_uncond_50M_500K",
        improved_64!(
            "--image_size 32 --num_channels 128 --dropout 0.3 --rescale_timesteps True --rescale_learned_sigmas True"
        ),
    ),
    (
        "cifar10_uncond_vlb_50M_500K",
        improved_64!("--image_size 32 --num_channels 128 --dropout 0.3 --rescale_timesteps True --use_kl True"),
    ),
    (
        "upsample_cond_500K",
        "--num_channels 192 --num_res_blocks 2 --learn_sigma True --class_cond True --large_size 256 --small_size 64 \
         --attention_resolutions 16,8 --num_heads 4 --use_scale_shift_norm True --diffusion_steps 4000 \
         --noise_schedule linear --rescale_learned_sigmas False --rescale_timesteps False",
    ),
    ("lsun_uncond_100M_1200K_bs128", improved_lsun!()),
    ("lsun_uncond_100M_2400K_bs64", improved_lsun!()),
];

/// The names of the released models.
pub fn names() -> impl Iterator<Item = &'static str> {
    RELEASED.iter().map(|(name, _)| *name)
}

/// The flags of a released model; its file's name will do, with or without `.pt`.
///
/// # Errors
/// [`ModelError::Flags`], with all names.
pub fn flags(name: &str) -> Result<Flags, ModelError> {
    let wanted = name.strip_suffix(".pt").unwrap_or(name);
    let origin = format!("--arch {wanted}");
    match RELEASED.iter().find(|(name, _)| *name == wanted) {
        Some((_, text)) => Flags::parse(text, origin),
        None => Err(ModelError::Flags {
            origin,
            problem: format!("no such model was released; there are {}", names().collect::<Vec<_>>().join(", ")),
        }),
    }
}
