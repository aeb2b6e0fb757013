use proptest::prelude::*;

use super::problem::{DEEP, FEW_PIXELS, MOST_SEGMENTS, SHORTEST_SEGMENT};
use super::*;
use crate::backend::gpu::choice::shape::Layer;

fn h200() -> DeviceLimits {
    DeviceLimits {
        name: "NVIDIA H200".into(),
        compute_capability: (9, 0),
        multiprocessors: 132,
        shared_bytes: 227 << 10,
        memory_bytes: 141 << 30,
        shifted_operands: true,
    }
}

fn conv(images: usize, side: usize, c: usize, k: usize) -> Layer {
    format!("n{images}h{side}w{side}c{c}k{k}").parse().unwrap()
}

fn choose(p: &ImageProblem) -> ImageChoice {
    takes_image(p, &h200()).unwrap();
    choose_image(p, &h200(), None)
}

#[test]
fn levels_with_many_pixels_take_the_largest_tile_and_halo_boxes() {
    for images in [128, 256] {
        for (side, c, k) in [(32, 128, 128), (32, 256, 256), (16, 256, 256), (16, 512, 256)] {
            let shape = conv(images, side, c, k);
            for p in [shape.fprop(), shape.dgrad()] {
                let choice = choose(&p);
                assert_eq!((choice.tile, choice.boxes), (ImageTile::LARGE, Boxes::Halo), "{choice}");
                assert_eq!((choice.segments.count, choice.split), (1, false), "{choice}");
            }
        }
    }
}

#[test]
fn few_pixels_run_all_segments_in_one_item_at_large_batches() {
    for (side, c) in [(8, 256), (8, 512), (4, 256), (4, 512)] {
        let choice = choose(&conv(256, side, c, 256).fprop());
        assert!(choice.tile.totals && !choice.split && choice.segments.count > 1, "{choice}");
        assert_eq!(choice.tile.columns, 64, "{choice}");
    }
}

#[test]
fn one_image_takes_small_tiles_and_splits() {
    for side in [4, 8] {
        let choice = choose(&conv(1, side, 256, 256).fprop());
        assert_eq!((choice.tile, choice.split, choice.segments.count), (ImageTile::SMALL, true, 4), "{choice}");
        assert_eq!((choice.tiles(), choice.items, choice.tickets()), (4, 16, 4));
        assert_eq!(choice.partial_bytes(), 16 * 64 * 64 * 4);
    }
    for side in [16, 32] {
        let choice = choose(&conv(1, side, 256, 256).fprop());
        assert_eq!((choice.tile, choice.split, choice.tickets()), (ImageTile::SMALL, false, 0), "{choice}");
    }
}

#[test]
fn image_channels_take_the_narrow_tile() {
    let choice = choose(&conv(256, 32, 128, 3).fprop());
    assert_eq!((choice.tile, choice.kernel(Pass::Fprop)), (ImageTile::NARROW, "conv_hopper_fprop_128x16_bf16".into()));
    // No other tile stores 20 channels.
    assert_eq!(choose(&conv(256, 32, 128, 20).fprop()).column_tiles, 2);
}

#[test]
fn without_shifted_operands_every_step_has_its_own_box() {
    let limits = DeviceLimits { shifted_operands: false, ..h200() };
    let choice = choose_image(&conv(256, 32, 128, 128).fprop(), &limits, None);
    assert_eq!((choice.tile, choice.boxes), (ImageTile::LARGE, Boxes::Taps), "{choice}");
    assert_eq!(choice.source_slots, choice.filter_slots);
}

#[test]
fn strided_forward_passes_and_pointwise_layers_have_no_halo() {
    let down: Layer = "n64h32w32c128k128s2".parse().unwrap();
    let pointwise: Layer = "n64h32w32c128k128r1".parse().unwrap();
    for p in [down.fprop(), pointwise.fprop(), pointwise.dgrad()] {
        assert_eq!(choose(&p).boxes, Boxes::Taps);
    }
    let dgrad = down.dgrad();
    assert_eq!((dgrad.phases, dgrad.taps, dgrad.all_taps, dgrad.tap_extent), (4, 4, 9, (2, 2)));
    assert_eq!((dgrad.out_h, dgrad.out_w), (16, 16));
    assert_eq!(dgrad.flops(), down.fprop().flops());
}

#[test]
fn an_upsampling_convolution_has_four_ninths_of_the_products() {
    let large = conv(2, 32, 128, 128).fprop();
    let small = ImageProblem::upsample(2, (16, 16), 128, 128);
    assert_eq!(small.pixels_an_image(), 32 * 32);
    assert_eq!(small.flops() * 9.0, large.flops() * 4.0);
}

#[test]
fn slabs_are_counted_source_by_source() {
    let p = "n2h8w8c72+64k64".parse::<Layer>().unwrap().fprop();
    assert_eq!((p.slabs(), p.steps()), (3, 27));
}

/// The bytes of one box of halo and seven filter slots, by hand.
#[test]
fn shared_memory_is_rings_staging_and_barriers() {
    let choice = choose(&conv(256, 32, 128, 128).fprop());
    assert_eq!(choice.patch, Patch { w: 8, h: 16, n: 1 });
    assert_eq!(choice.source_slot_bytes, 23 << 10);
    assert_eq!(choice.shared_bytes, (2 * 23 + 7 * 16 + 2 * 32 + 1) << 10);
}

#[test]
fn other_problems_are_refused_with_a_reason() {
    let refused = |p: ImageProblem, limits: &DeviceLimits, words: &str| {
        let reason = takes_image(&p, limits).unwrap_err();
        assert!(reason.contains(words), "{reason}");
    };
    let good = conv(2, 8, 64, 64);
    for capability in [(8, 0), (10, 0)] {
        refused(good.fprop(), &DeviceLimits { compute_capability: capability, ..h200() }, "capability");
    }
    refused(good.fprop().with_precision(Precision::F32), &h200(), "bf16");
    refused(conv(2, 8, 36, 64).fprop(), &h200(), "multiples of 8");
    refused(conv(2, 8, 24, 64).fprop(), &h200(), "32 channels");
    refused(conv(2, 8, 36, 64).dgrad(), &h200(), "filter's channels");
    refused(good.fprop(), &DeviceLimits { shared_bytes: 48 << 10, ..h200() }, "shared memory");
}

#[test]
fn candidates_print_and_parse() {
    let limits = h200();
    for candidate in candidates(&conv(3, 8, 256, 256).fprop(), &limits) {
        let config = candidate.config();
        assert_eq!(config.to_string().parse(), Ok(config));
    }
    for (text, part) in [
        ("128x128.halo.8x16x1.whole", "five parts"),
        ("128x256.halo.8x16x1.whole.2+7", "no tile 128x256, but 128x128, 128x64"),
        ("128x128.box.8x16x1.whole.2+7", "taps or halo"),
        ("128x128.halo.8x16.whole.2+7", "width x height"),
        ("128x128.halo.8x16x1.half.2+7", "split or whole"),
        ("128x128.halo.8x16x1.whole.27", "source + filter"),
    ] {
        let error = text.parse::<ImageConfig>().unwrap_err().to_string();
        assert!(error.contains(part) && error.contains(text), "{error}");
    }
}

#[test]
fn a_candidate_that_breaks_a_rule_is_named_with_it() {
    let rule = |shape: &str, candidate: &str| {
        let shape: Layer = shape.parse().unwrap();
        check(&shape.fprop(), &h200(), &candidate.parse().unwrap()).unwrap_err().to_string()
    };
    let (wide, few) = ("n4h32w32c128k128", "n4h8w8c256k256");
    for (shape, candidate, part) in [
        (wide, "128x16.taps.8x16x1.whole.4+4", "image's channels"),
        ("n4h8w8c64k12", "64x64.taps.8x8x1.whole.4+4", "no multiple of 8"),
        (wide, "64x64.taps.8x16x1.whole.4+4", "128 pixels, the tile 64"),
        (wide, "128x128.halo.16x8x1.whole.2+5", "8 wide"),
        (wide, "128x128.halo.8x8x1.whole.2+5", "fills the tile"),
        ("n4h32w32c128k128r1", "128x128.halo.8x16x1.whole.2+5", "several taps"),
        (few, "128x128.halo.8x16x1.whole.2+5", "totals for 4 segments"),
        (wide, "128x128.halo.8x16x1.split.2+5", "nothing to split"),
        (wide, "128x128.taps.8x16x1.whole.2+5", "at least 3 source"),
        (wide, "128x128.halo.8x16x1.whole.2+2", "3 filter slots"),
        (wide, "128x128.taps.8x16x1.whole.6+6", "a block has 232448"),
    ] {
        let error = rule(shape, candidate);
        assert!(error.contains(part) && error.contains(candidate), "{error}");
    }
}

#[test]
fn a_choice_prints_its_reason() {
    let text = choose(&conv(1, 8, 256, 256).fprop()).to_string();
    for part in ["64x64", "4 segments of 9 steps", "predicted", "limited by", "next best"] {
        assert!(text.contains(part), "{text}");
    }
}

fn problems() -> impl Strategy<Value = ImageProblem> {
    let size = (1usize..=70, 1usize..=70, 1usize..=300);
    let channels = (prop::collection::vec(4usize..=70, 1..=2), 1usize..=50);
    (size, channels, 1usize..=5, 1usize..=2, any::<(bool, bool)>()).prop_filter_map(
        "the kernel fits, and the kernels take it",
        |((h, w, n), (c, k), r, s, (dgrad, residual))| {
            let channels: Vec<String> = c.iter().map(|c| (8 * c).to_string()).collect();
            let columns = if dgrad { 8 * k } else { k * if k % 3 == 0 { 1 } else { 8 } };
            let shape = format!("n{n}h{h}w{w}c{}k{columns}r{r}s{s}", channels.join("+"));
            let shape: Layer = shape.parse().ok()?;
            let p = if dgrad { shape.dgrad() } else { shape.fprop() }.with_residual(residual);
            takes_image(&p, &h200()).is_ok().then_some(p)
        },
    )
}

proptest! {
    #[test]
    fn segments_follow_from_one_image_alone(p in problems(), images in 1usize..1000) {
        let s = segments(&p);
        prop_assert_eq!(s, segments(&ImageProblem { images, residual: !p.residual, ..p.clone() }));
        prop_assert!(s.count * s.steps >= p.steps() && (s.count - 1) * s.steps < p.steps());
        prop_assert!(s.count == 1 || (s.steps >= SHORTEST_SEGMENT && s.count <= MOST_SEGMENTS));
        prop_assert!(s.count == 1 || (p.pixels_an_image() <= FEW_PIXELS && p.steps() >= DEEP));
        let small = DeviceLimits { shared_bytes: 160 << 10, multiprocessors: 78, shifted_operands: false, ..h200() };
        for limits in [h200(), small] {
            prop_assert_eq!(choose_image(&p, &limits, None).segments, s);
        }
    }

    #[test]
    fn whether_a_problem_is_taken_does_not_depend_on_the_batch(p in problems(), images in 1usize..1000) {
        let other = ImageProblem { images, ..p };
        prop_assert!(takes_image(&other, &h200()).is_ok());
    }

    #[test]
    fn every_candidate_is_legal_and_fits(p in problems()) {
        let all = candidates(&p, &h200());
        prop_assert!(!all.is_empty());
        for c in &all {
            let again = check(&p, &h200(), &c.config());
            prop_assert_eq!(again.as_ref(), Ok(c));
            prop_assert!(c.shared_bytes <= 227 << 10);
            prop_assert!(c.source_slot_bytes % SLOT_ALIGN == 0 && c.tile.filter_slot_bytes() % SLOT_ALIGN == 0);
            prop_assert!(c.predicted.us.is_finite() && c.predicted.us > cost::LAUNCH_US);
            prop_assert!(c.blocks >= 1 && c.blocks <= 132 && c.blocks <= c.items);
        }
        let sorted = all.windows(2).all(|w| w[0].predicted.us <= w[1].predicted.us);
        prop_assert!(sorted);
        let choice = choose_image(&p, &h200(), None);
        prop_assert_eq!(choice.config(), all[0].config());
    }

    /// Every pixel of every image lies in exactly one patch, at one row of its tile.
    #[test]
    fn patches_cover_every_pixel_once(p in problems()) {
        for c in candidates(&ImageProblem { images: p.images.min(20), ..p.clone() }, &h200()) {
            let images = p.images.min(20);
            let mut seen = vec![0u8; images * p.out_h * p.out_w];
            let (nx, ny, nn) = c.patches;
            for (pn, py, px) in (0..nn).flat_map(|n| (0..ny).flat_map(move |y| (0..nx).map(move |x| (n, y, x)))) {
                for row in 0..c.patch.pixels() {
                    let (x, y) = (px * c.patch.w + row % c.patch.w, py * c.patch.h + row / c.patch.w % c.patch.h);
                    let n = pn * c.patch.n + row / (c.patch.w * c.patch.h);
                    if x < p.out_w && y < p.out_h && n < images {
                        seen[(n * p.out_h + y) * p.out_w + x] += 1;
                    }
                }
            }
            prop_assert!(seen.iter().all(|&times| times == 1), "{}", c);
            prop_assert!(c.column_tiles * c.tile.columns >= p.columns);
        }
    }
}
