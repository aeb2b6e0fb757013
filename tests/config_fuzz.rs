//! Configurations from anywhere: whatever the text, no panic and no memory worth speaking of.
//!
//! `WARPDIFF_FUZZ_SECONDS=600 cargo test --test config_fuzz -- --nocapture` goes on for so long, from another seed each time.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::memory::{Counting, peak_bytes};
use common::models::{oblong, scheduler, tiny, wide};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use serde_json::{Map, Value, json};
use warpdiff::backend::{Backend, cpu::Cpu};
use warpdiff::diffusion::{
    LossWeighting, Objective, PredictionType, Schedule, SchedulerConfig, TrainingObjective, VarianceType,
};
use warpdiff::model::adm::Flags;
use warpdiff::program::{Batch, ForwardProgram, TrainingInputs, TrainingOptions, TrainingProgram};
use warpdiff::unet::{DownBlock, SampleSize, UNetConfig, UpBlock};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What reading a configuration and planning its network may hold. A schedule of the most timesteps that are accepted
/// takes less, and so does a graph of the most layers.
const LIMIT: usize = 64 << 20;

fn value() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        Just(0u64),
        1..64u64,
        Just(4095),
        Just(65_536),
        Just(1 << 20),
        Just(1 << 31),
        Just(1 << 32),
        Just(u64::MAX / 4),
        Just(u64::MAX)
    ];
    let word = prop_oneof![
        Just("DownBlock2D"),
        Just("AttnDownBlock2D"),
        Just("ResnetUpsampleBlock2D"),
        Just("fourier"),
        Just("scale_shift"),
        Just("resnet"),
        Just("timestep"),
        Just("identity"),
        Just("squaredcos_cap_v2"),
        Just("laplace"),
        Just("AttnSkipDownBlock2D"),
        Just("SkipUpBlock2D"),
        Just("KDownBlock2D"),
        Just("KCrossAttnUpBlock2D"),
        Just("learned"),
        Just("gelu"),
        Just("mish"),
        Just("trailing"),
        Just("sde-dpmsolver++"),
        Just("v_prediction"),
        Just("learned_range"),
        Just("")
    ];
    let leaf = prop_oneof![
        4 => number.prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        2 => any::<f64>().prop_map(Value::from),
        1 => prop::sample::select(vec![1e-320, -0.0, 0.5, 1.0, 4.0, 1e38, 1e300]).prop_map(Value::from),
        2 => word.prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 24, 20, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..20).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,6}", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// One of the texts with some keys replaced.
fn edited(bases: Vec<String>) -> impl Strategy<Value = Value> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), value()), 0..4);
    (prop::sample::select(bases), edits).prop_map(|(text, edits)| {
        let mut json: Value = serde_json::from_str(&text).unwrap();
        let map = json.as_object_mut().unwrap();
        let keys: Vec<String> = map.keys().cloned().collect();
        for (at, value) in edits {
            map.insert(keys[at.index(keys.len())].clone(), value);
        }
        json
    })
}

fn networks() -> Vec<String> {
    let everything = UNetConfig { attn_norm_num_groups: Some(4), time_embedding_dim: Some(24), ..oblong() };
    let timestep = r#"{"class_embed_type": "timestep", "num_class_embeds": null, "null_class": null}"#;
    let mut classes: Value = serde_json::from_str(&tiny().to_json()).unwrap();
    let more: Value = serde_json::from_str(timestep).unwrap();
    classes.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    // Skip and K blocks, whose rules are their own.
    let [skip, k] = [
        include_str!("cases/q10_ncsnpp/model/config.json"),
        include_str!("cases/q20_kblocks_gelu/model/unet/config.json"),
    ];
    [tiny().to_json(), wide().to_json(), everything.to_json(), classes.to_string(), skip.into(), k.into()].into()
}

fn flags() -> Vec<String> {
    [
        include_str!("cases_adm/a02_guided_neworder/model/flags.json"),
        include_str!("cases_adm/a05_superres/model/flags.json"),
    ]
    .map(String::from)
    .into()
}

fn schedules() -> Vec<String> {
    use warpdiff::diffusion::SamplerKind::{Ddim, Ddpm, DpmSolverPp};
    [Ddpm, Ddim, DpmSolverPp].map(|kind| scheduler(&tiny(), 50).with_sampler(kind).to_json()).into()
}

static PLANNED: AtomicUsize = AtomicUsize::new(0);
static FLAGGED: AtomicUsize = AtomicUsize::new(0);
static RUN: AtomicUsize = AtomicUsize::new(0);
static TRAINED: AtomicUsize = AtomicUsize::new(0);
static SAMPLED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn check_peak(peak: usize, text: &str) {
    MOST.fetch_max(peak, Relaxed);
    assert!(peak < LIMIT, "{} MiB for {text}", peak >> 20);
}

/// Reads a configuration; plans and, where it is small, runs what was accepted.
fn try_network(text: &str) {
    let ((), peak) = peak_bytes(|| {
        let Ok(config) = UNetConfig::from_json(text) else { return };
        let (h, w) = config.height_width().unwrap_or((8, 8));
        let Ok(program) = ForwardProgram::new(&config, Batch { n: 1, h, w }, true) else { return };
        PLANNED.fetch_add(1, Relaxed);
        let plan = program.plan;
        if plan.total_bytes() < 16 << 20 && plan.graph().nodes().len() < 600 {
            let mut exe = Cpu::new(Some(1)).unwrap().compile(plan).unwrap();
            exe.run().unwrap();
            RUN.fetch_add(1, Relaxed);
        }
        assert_eq!(UNetConfig::from_json(&config.to_json()).unwrap(), config);
        try_training(&config, Batch { n: 1, h, w });
    });
    check_peak(peak, text);
}

/// The backward pass, where the network has one.
fn try_training(config: &UNetConfig, batch: Batch) {
    let schedule = Schedule::new(&scheduler(config, 8).betas).unwrap();
    let (epsilon, fixed) = (PredictionType::Epsilon, VarianceType::FixedSmall);
    let objective = TrainingObjective::new(schedule, epsilon, fixed, Objective::Simple, LossWeighting::None, 256);
    let options = TrainingOptions { objective: Arc::new(objective), optimizer: None, inputs: TrainingInputs::Drawn };
    let Ok(program) = TrainingProgram::new(config, batch, &options) else { return };
    if program.plan.total_bytes() < 16 << 20 && program.plan.graph().nodes().len() < 1500 {
        Cpu::new(Some(1)).unwrap().compile(program.plan).unwrap().run().unwrap();
        TRAINED.fetch_add(1, Relaxed);
    }
}

/// Reads the flags of a checkpoint; what they describe is tried as any network is.
fn try_flags(text: &str) {
    let (config, peak) = peak_bytes(|| Flags::parse(text, "flags.json").and_then(|flags| flags.network()).ok());
    check_peak(peak, text);
    if let Some(network) = config {
        FLAGGED.fetch_add(1, Relaxed);
        try_network(&network.config.to_json());
    }
}

fn try_schedule(text: &str) {
    let ((), peak) = peak_bytes(|| {
        let Ok(config) = SchedulerConfig::from_json(text) else { return };
        for steps in [1, 3] {
            // A sampler may not fit its schedule; that is an error, not a panic.
            let table = warpdiff::diffusion::StepTable::build(&config, steps, 0.0);
            SAMPLED.fetch_add(usize::from(table.is_ok()), Relaxed);
        }
    });
    check_peak(peak, text);
}

/// One test, since the memory that is counted is of the whole process.
#[test]
fn configurations_from_anywhere() {
    huge_values_are_refused_by_name();
    // The texts that all others are made of.
    for text in networks() {
        UNetConfig::from_json(&text).unwrap();
        try_network(&text);
    }
    schedules().iter().for_each(|text| drop(SchedulerConfig::from_json(text).unwrap()));
    for text in flags() {
        Flags::parse(&text, "flags.json").unwrap().network().unwrap();
        try_flags(&text);
    }
    let seconds = std::env::var("WARPDIFF_FUZZ_SECONDS").ok().map(|s| s.parse().unwrap());
    let Some(until) = seconds.map(|s| Instant::now() + Duration::from_secs(s)) else {
        return report(|| pass(&TestRng::deterministic_rng(RngAlgorithm::ChaCha)));
    };
    report(|| {
        while Instant::now() < until {
            pass(&TestRng::from_seed(RngAlgorithm::ChaCha, &rand::random::<[u8; 32]>()));
        }
    });
}

const ATTEMPTS: [fn(&str); 3] = [try_network, try_schedule, try_flags];

/// Thousands of edited, damaged and random texts.
fn pass(rng: &TestRng) {
    let cases = |n| ProptestConfig { cases: n, failure_persistence: None, ..ProptestConfig::default() };
    let run = |n| TestRunner::new_with_rng(cases(n), rng.clone());
    for (texts, attempt) in [networks(), schedules(), flags()].into_iter().zip(ATTEMPTS) {
        let each = |json: Value| {
            attempt(&json.to_string());
            Ok(())
        };
        run(6000).run(&edited(texts), each).unwrap();
    }
    let cut = (
        prop::sample::select([networks(), schedules(), flags()].concat()),
        any::<prop::sample::Index>(),
        any::<u8>(),
        any::<bool>(),
    );
    run(1000)
        .run(&cut, |(text, at, byte, truncate)| {
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            if truncate {
                bytes.truncate(at)
            } else {
                bytes[at] = byte
            }
            let text = String::from_utf8_lossy(&bytes);
            ATTEMPTS.into_iter().for_each(|attempt| attempt(&text));
            Ok(())
        })
        .unwrap();
    let bytes = prop::collection::vec(any::<u8>(), 0..64);
    run(1000)
        .run(&bytes, |bytes| {
            let text = String::from_utf8_lossy(&bytes);
            ATTEMPTS.into_iter().for_each(|attempt| attempt(&text));
            Ok(())
        })
        .unwrap();
}

/// Runs passes and says what they reached.
fn report(passes: impl FnOnce()) {
    passes();
    let [planned, ran, trained, sampled, most] = [&PLANNED, &RUN, &TRAINED, &SAMPLED, &MOST].map(|n| n.load(Relaxed));
    let flagged = FLAGGED.load(Relaxed);
    println!(
        "{planned} networks planned, {flagged} of them from flags, {ran} run, {trained} trained, {sampled} samplers built, at most {} MiB",
        most >> 20
    );
    assert!(
        planned > 1000 && ran > 500 && trained > 300 && sampled > 1000 && flagged > 500,
        "{planned} {ran} {trained} {sampled} {flagged}"
    );
}

/// One key at a time, all others as they are: huge values are refused by name, before anything is planned.
fn huge_values_are_refused_by_name() {
    for key in [
        "in_channels",
        "out_channels",
        "layers_per_block",
        "time_embedding_dim",
        "num_class_embeds",
        "sample_size",
        "norm_num_groups",
    ] {
        for huge in [1u64 << 28, 1 << 32, 1 << 62, u64::MAX] {
            let mut json: Value = serde_json::from_str(&wide().to_json()).unwrap();
            json[key] = huge.into();
            let error = UNetConfig::from_json(&json.to_string()).unwrap_err().to_string();
            assert!(error.contains(key), "{key} = {huge}: {error}");
        }
    }
    let mut json: Value = serde_json::from_str(&wide().to_json()).unwrap();
    json["block_out_channels"] = json!([1u64 << 40, 32]);
    let error = UNetConfig::from_json(&json.to_string()).unwrap_err().to_string();
    assert!(error.contains("block_out_channels"), "{error}");
    // The most operations and the widest layers that are accepted are still planned without taking that memory.
    let levels = 12;
    let config = UNetConfig {
        sample_size: Some(SampleSize::Side(8192)),
        in_channels: 4096,
        out_channels: 4096,
        block_out_channels: vec![1 << 14; levels],
        layers_per_block: 64,
        down_block_types: vec![DownBlock::Attention; levels],
        up_block_types: vec![UpBlock::Attention; levels],
        time_embedding_dim: Some(1 << 16),
        num_class_embeds: Some(1 << 24),
        null_class: None,
        ..wide()
    };
    let begin = Instant::now();
    let batch = Batch { n: 1, h: 8192, w: 8192 };
    let (program, peak) = peak_bytes(|| ForwardProgram::new(&config, batch, false));
    println!(
        "{} operations, {} MiB, {:?}",
        program.as_ref().unwrap().plan.graph().nodes().len(),
        peak >> 20,
        begin.elapsed()
    );
    assert!(program.is_ok() && peak < LIMIT, "{} MiB", peak >> 20);
    let config = UNetConfig { block_out_channels: vec![1 << 14; 2], ..wide() };
    assert!(ForwardProgram::new(&config, Batch { n: usize::MAX, h: 16, w: 16 }, false).is_err());
}
