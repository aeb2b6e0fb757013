use proptest::prelude::*;

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

fn wgrad(shape: &str) -> PixelProblem {
    shape.parse::<Layer>().unwrap().wgrad()
}

fn choose(shape: &str) -> PixelChoice {
    let p = wgrad(shape);
    takes_pixel(&p, &h200()).unwrap();
    choose_pixel(&p, &h200(), None)
}

#[test]
fn one_wave_fills_the_device() {
    for shape in ["n128h32w32c128k128", "n256h16w16c256k256", "n256h32w32c256k128"] {
        let choice = choose(shape);
        assert_eq!((choice.columns, choice.taps_a_tile), (128, 3), "{choice}");
        assert_eq!(choice.predicted.waves, 1, "{choice}");
        assert!((110..=132).contains(&choice.items), "{choice}");
    }
}

/// Three taps of 128 channels: 16 KiB of dy, 48 of x.
#[test]
fn shared_memory_is_stages_ones_and_barriers() {
    let choice = choose("n128h32w32c128k128");
    assert_eq!((choice.stages, choice.stage_bytes), (3, 64 << 10));
    assert_eq!(choice.shared_bytes, (3 * 64 + 2) << 10);
    assert_eq!((choice.patch, choice.patches), (Patch { w: 8, h: 8, n: 1 }, (4, 4, 128)));
}

#[test]
fn a_filter_row_is_cut_evenly() {
    for (r, taps, tiles) in [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 2, 2), (5, 3, 2), (7, 3, 3)] {
        let choice = choose(&format!("n8h16w16c128k128r{r}"));
        assert_eq!((choice.taps_a_tile, choice.tap_tiles), (taps, tiles));
        assert_eq!(choice.tiles(), r * tiles * choice.channel_tiles);
    }
}

#[test]
fn little_depth_is_not_split_far() {
    let choice = choose("n1h4w4c256k256");
    assert_eq!((choice.splits, choice.patches_a_split), (1, 1), "{choice}");
}

#[test]
fn other_problems_are_refused_with_a_reason() {
    let refused = |p: PixelProblem, limits: &DeviceLimits, words: &str| {
        let reason = takes_pixel(&p, limits).unwrap_err();
        assert!(reason.contains(words), "{reason}");
    };
    let good = wgrad("n2h8w8c64k64");
    refused(good.clone(), &DeviceLimits { compute_capability: (8, 0), ..h200() }, "capability");
    refused(good.clone().with_precision(Precision::F32), &h200(), "bf16");
    refused(wgrad("n2h8w8c64k3"), &h200(), "multiples of 8");
    refused(wgrad("n2h8w8c24k64"), &h200(), "32 channels");
    refused(good, &DeviceLimits { shared_bytes: 48 << 10, ..h200() }, "shared memory");
}

#[test]
fn a_table_may_not_change_the_order_of_sums() {
    let p = wgrad("n128h32w32c128k128");
    let chosen = choose_pixel(&p, &h200(), None).config();
    let fewer = PixelConfig { stages: 2, ..chosen };
    assert_eq!(override_with(&p, &h200(), &fewer).unwrap().stages, 2);
    let error = override_with(&p, &h200(), &PixelConfig { splits: 2, ..chosen }).unwrap_err().to_string();
    assert!(error.contains("order of sums") && error.contains(&format!("s{}", chosen.splits)), "{error}");
    for (config, part) in [
        (PixelConfig { columns: 96, ..chosen }, "128 or 64"),
        (PixelConfig { stages: 1, ..chosen }, "at least 2"),
        (PixelConfig { stages: 4, ..chosen }, "shared memory"),
        (PixelConfig { patch: Patch { w: 16, h: 8, n: 1 }, ..chosen }, "128 pixels"),
    ] {
        let error = override_with(&p, &h200(), &config).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

fn problems() -> impl Strategy<Value = PixelProblem> {
    let size = (1usize..=40, 1usize..=40, 1usize..=300);
    (size, 4usize..=70, 4usize..=70, 1usize..=5, 1usize..=2).prop_filter_map(
        "the kernel fits",
        |((h, w, n), c, k, r, s)| {
            let shape: Layer = format!("n{n}h{h}w{w}c{}k{}r{r}s{s}", 8 * c, 8 * k).parse().ok()?;
            Some(shape.wgrad())
        },
    )
}

proptest! {
    #[test]
    fn every_candidate_is_legal_and_covers_the_depth(p in problems()) {
        prop_assert!(takes_pixel(&p, &h200()).is_ok());
        let all = candidates(&p, &h200());
        for c in &all {
            prop_assert!(c.shared_bytes <= 227 << 10 && c.stages >= FEWEST_STAGES);
            let (x, y, n) = c.patches;
            let patches = x * y * n;
            prop_assert!(x * c.patch.w >= p.out_w && y * c.patch.h >= p.out_h && n * c.patch.n >= p.images);
            prop_assert!((x - 1) * c.patch.w < p.out_w && (y - 1) * c.patch.h < p.out_h);
            prop_assert!((n - 1) * c.patch.n < p.images);
            prop_assert!(c.splits * c.patches_a_split >= patches && (c.splits - 1) * c.patches_a_split < patches);
            prop_assert!(c.splits as f64 * p.result_bytes() <= MOST_PARTIAL_BYTES as f64 || c.splits == 1);
            prop_assert_eq!(c.items, c.row_tiles * p.kernel.0 * c.tap_tiles * c.channel_tiles * c.splits);
            prop_assert!(c.taps_a_tile * c.tap_tiles >= p.kernel.1 && c.taps_a_tile <= 3);
            let again = check(&p, &h200(), &c.config());
            prop_assert_eq!(again.as_ref(), Ok(c));
        }
    }

    /// The order of sums may follow the batch, but not the device.
    #[test]
    fn splits_do_not_depend_on_the_device(p in problems()) {
        let other = DeviceLimits { multiprocessors: 78, shifted_operands: false, ..h200() };
        let (a, b) = (choose_pixel(&p, &h200(), None), choose_pixel(&p, &other, None));
        prop_assert_eq!((a.patch, a.splits), (b.patch, b.splits));
    }
}
