//! Sums and floors of a trace whose numbers are known.

use std::ops::Range;
use std::time::Duration;

use super::*;
use crate::backend::trace::{KernelLaunch, Step as Traced};
use crate::graph::{Activation, ConvGeometry, DType, Epilogue, Graph, ParamSpec};

/// A convolution of two launches, then two equal activations.
fn graph() -> Graph {
    let mut graph = Graph::new();
    let x = graph.input("x", [2, 5, 7, 3].as_slice(), DType::Act);
    let w = graph.param(ParamSpec::plain("w", &[4, 3, 3, 3]));
    graph.set_scope("down.0");
    let y = graph.apply(Op::Conv2d(ConvGeometry::SAME_3X3, Epilogue::bias(false)), &[x, w]).unwrap();
    let y = graph.apply(Op::Activation(Activation::Silu), &[y]).unwrap();
    let y = graph.apply(Op::Activation(Activation::Silu), &[y]).unwrap();
    graph.keep(y);
    graph
}

fn traced(nodes: Range<usize>, kernel: &str) -> Traced {
    let launch = KernelLaunch { name: kernel.into(), grid: [3, 2, 1], block: 128, shared_bytes: 99 };
    Traced { nodes, kernel: Some(launch) }
}

fn profile(roof: Roof) -> Profile {
    let us = |times: [u64; 4]| times.map(Duration::from_micros).to_vec();
    let trace = Trace {
        steps: vec![traced(0..1, "conv"), traced(0..1, "finish"), traced(1..2, "silu"), traced(2..3, "silu")],
        // Medians 12, 6, 4, 8, of which one is the cost of taking the time.
        runs: vec![us([12, 6, 4, 8]), us([10, 90, 3, 9]), us([70, 5, 40, 1])],
        overhead: Duration::from_micros(1),
    };
    let subject = Subject { title: "test".into(), device: "none".into(), batch: 2, roof };
    Profile::new(&graph(), Precision::F32, &trace, 20.0, subject)
}

/// 1 TFLOP/s and 1 GB/s.
fn roofs() -> Roof {
    Roof { tflops: Some(1.0), gbs: Some(1.0), gnormals: None, source: "a test".into() }
}

#[test]
fn steps_have_their_time_and_the_longest_launch_of_a_node_its_work() {
    let p = profile(roofs());
    let times: Vec<(f64, f64)> = p.steps.iter().map(|s| (s.start_us, s.us)).collect();
    assert_eq!(times, [(0.0, 11.0), (11.0, 5.0), (16.0, 3.0), (19.0, 7.0)]);
    assert_eq!((p.steps_us, p.overhead_us, p.runs), (26.0, 1.0, 3));
    assert_eq!(p.images_per_second(), 1e5);
    let (conv, finish) = (&p.steps[0], &p.steps[1]);
    // 2 * 2*5*7*4 sums of 27 products; x, w and y in f32.
    let bytes = 4 * (2 * 5 * 7 * 3 + 4 * 27 + 2 * 5 * 7 * 4);
    assert_eq!((conv.flops, conv.bytes), (2 * 280 * 27, bytes));
    assert_eq!((finish.flops, finish.bytes, finish.floor), (0, 0, None));
    assert_eq!((conv.scope.as_str(), conv.shape.as_str()), ("down.0", "2x5x7x3 -> 2x5x7x4 3x3"));
    assert_eq!((conv.grid, conv.block, conv.shared_bytes), (Some([3, 2, 1]), Some(128), Some(99)));
    assert!((conv.floor.unwrap().us - bytes as f64 / 1e3).abs() < 1e-12);
}

#[test]
fn equal_operations_and_kernels_are_added() {
    let p = profile(roofs());
    let lines = p.operations();
    assert_eq!(lines.len(), 2);
    let (conv, silu) = (&lines[0], &lines[1]);
    assert_eq!((conv.name.as_str(), conv.count, conv.us, conv.detail.as_str()), ("conv2d", 1, 16.0, "conv finish"));
    assert_eq!((silu.name.as_str(), silu.count, silu.us, silu.detail.as_str()), ("silu", 2, 10.0, "silu"));
    assert!((conv.percent - 1600.0 / 26.0).abs() < 1e-12);
    // Two times 280 numbers read and written, at 1000 bytes a microsecond.
    let floor = 2.0 * 2.0 * 4.0 * 280.0 / 1e3;
    assert!((silu.floor_us.unwrap() - floor).abs() < 1e-12);
    assert!((silu.roof_percent.unwrap() - 10.0 * floor).abs() < 1e-12);
    assert!((silu.over_floor_us.unwrap() - (10.0 - floor)).abs() < 1e-12);
    assert!((conv.tflops - 2.0 * 280.0 * 27.0 / 16.0 / 1e6).abs() < 1e-15);
    let kernels = p.kernels();
    let names: Vec<_> = kernels.iter().map(|l| (l.name.as_str(), l.count, l.us)).collect();
    assert_eq!(names, [("conv", 1, 11.0), ("silu", 2, 10.0), ("finish", 1, 5.0)]);
}

#[test]
fn without_roofs_nothing_is_claimed() {
    let p = profile(Roof { tflops: None, gbs: None, gnormals: None, source: "none".into() });
    assert!(p.steps.iter().all(|s| s.floor.is_none()));
    assert!(
        p.operations().iter().all(|l| l.floor_us.is_none() && l.roof_percent.is_none() && l.over_floor_us.is_none())
    );
}

#[test]
fn the_trace_has_an_event_for_each_step() {
    let trace = chrome::trace(&profile(roofs()));
    let events = trace["traceEvents"].as_array().unwrap();
    assert_eq!(events.len(), 5);
    assert_eq!(
        (&events[2]["name"], &events[2]["ts"], &events[2]["dur"]),
        (&"finish".into(), &11.0.into(), &5.0.into())
    );
    assert_eq!(events[1]["args"]["scope"], "down.0");
}

#[test]
fn no_text_ends_the_data_of_the_page() {
    let mut p = profile(roofs());
    p.title = "</script><b>\"&".into();
    let page = html::page(&p);
    assert!(!page.contains("</script><b>") && !page.contains("@@"));
    let (_, data) = page.split_once("id=\"data\">").unwrap();
    let (data, _) = data.split_once("</script>").unwrap();
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["profile"]["title"], "</script><b>\"&");
    assert_eq!(data["operations"].as_array().unwrap().len(), 2);
    // It loads nothing.
    for word in ["src=", "href=", "url(", "import(", "fetch("] {
        assert!(!page.contains(word), "{word}");
    }
}
