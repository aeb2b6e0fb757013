//! The trace event format, which `chrome://tracing` and Perfetto open.

use serde_json::{Value, json};

use super::Profile;

/// One complete event a step, in microseconds.
pub fn trace(profile: &Profile) -> Value {
    let event = |step: &super::Step| {
        json!({
            "name": step.kernel.as_deref().unwrap_or(step.operation), "cat": step.operation, "ph": "X", "pid": 0, "tid": 0,
            "ts": step.start_us, "dur": step.us,
            "args": {
                "scope": step.scope, "shape": step.shape, "flops": step.flops, "bytes": step.bytes, "grid": step.grid,
                "block": step.block, "floor_us": step.floor.map(|f| f.us),
            },
        })
    };
    let name = json!({"name": "process_name", "ph": "M", "pid": 0, "args": {"name": format!("{}: {}", profile.device, profile.title)}});
    let events: Vec<Value> = std::iter::once(name).chain(profile.steps.iter().map(event)).collect();
    json!({"displayTimeUnit": "ms", "traceEvents": events})
}
