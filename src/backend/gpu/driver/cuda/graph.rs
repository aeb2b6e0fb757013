//! Recorded launches: a CUDA graph, or with `WARPDIFF_SYNC=1` a list.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::api::{Event, Stream, checked};
use super::{Inner, Recording};
use crate::backend::gpu::driver::{DriverError, LaunchTimes};
use crate::backend::gpu::launch::Launch;

/// Launches as one CUDA graph.
pub(super) struct Replay {
    inner: Arc<Inner>,
    graph: sys::CUgraphExec,
}

// SAFETY: the handle belongs to the context, which `replay` makes current on whatever thread it runs.
unsafe impl Send for Replay {}

impl Replay {
    /// Captures the launches in order and prepares the graph on the device. With `overlap` each but the first may begin while
    /// the one before it ends.
    ///
    /// # Safety
    /// As for each launch, at every replay.
    pub unsafe fn capture(inner: &Arc<Inner>, launches: &[Launch], overlap: bool) -> Result<Self, DriverError> {
        inner.bind()?;
        // Attributes and lazily loaded functions come first: a capture should hold launches only.
        let functions = launches.iter().map(|l| inner.prepare(l)).collect::<Result<Vec<_>, _>>()?;
        let enqueue = |stream: &Stream| {
            functions.iter().zip(launches).enumerate().try_for_each(|(i, (function, launch))| {
                // SAFETY: the caller's.
                unsafe { inner.enqueue(*function, launch, stream.raw(), overlap && i > 0) }
            })
        };
        Self::capture_calls(inner, enqueue)
    }

    /// Captures whatever `enqueue` gives to the stream and prepares the graph on the device; the context is current.
    pub fn capture_calls<E: From<DriverError>>(
        inner: &Arc<Inner>,
        enqueue: impl FnOnce(&Stream) -> Result<(), E>,
    ) -> Result<Self, E> {
        // A stream of its own, so that work of other threads does not end up in the graph.
        let stream = Stream::new()?;
        let graph = capture(&stream, enqueue)?;
        // SAFETY: the graph was just captured, and its instance does not need it.
        let (instance, _) = unsafe {
            let none = sys::CUgraphInstantiate_flags(0);
            (checked("cuGraphInstantiate", result::graph::instantiate(graph, none)), result::graph::destroy(graph))
        };
        let replay = Self { inner: Arc::clone(inner), graph: instance? };
        // SAFETY: both are alive.
        checked("cuGraphUpload", unsafe { result::graph::upload(replay.graph, inner.stream.raw()) })?;
        Ok(replay)
    }
}

/// Takes the time of each launch, by a graph with an event behind each.
///
/// # Safety
/// As for each launch, at every run.
pub(super) unsafe fn trace(inner: &Arc<Inner>, launches: &[Launch], times: usize) -> Result<LaunchTimes, DriverError> {
    inner.bind()?;
    let functions = launches.iter().map(|l| inner.prepare(l)).collect::<Result<Vec<_>, _>>()?;
    // One in front, one behind each launch, and one more: the last two have nothing in between.
    let marks = (0..launches.len() + 2).map(|_| Event::timing()).collect::<Result<Vec<_>, _>>()?;
    let (last, others) = (&marks[launches.len() + 1], &marks[1..=launches.len()]);
    let enqueue = |stream: &Stream| {
        marks[0].record_in_graph(stream)?;
        for ((function, launch), mark) in functions.iter().zip(launches).zip(others) {
            // SAFETY: the caller's.
            unsafe { inner.enqueue(*function, launch, stream.raw(), false) }?;
            mark.record_in_graph(stream)?;
        }
        last.record_in_graph(stream)
    };
    let replay = Replay::capture_calls::<DriverError>(inner, enqueue)?;
    let mut times_of = LaunchTimes::default();
    // The first replay loads what later ones find loaded.
    for run in 0..=times {
        replay.replay()?;
        inner.synchronize()?;
        if run > 0 {
            let pairs = marks.windows(2).take(launches.len());
            times_of.runs.push(pairs.map(|pair| pair[0].until(&pair[1])).collect::<Result<_, _>>()?);
        }
        times_of.overhead = marks[launches.len()].until(last)?;
    }
    Ok(times_of)
}

fn capture<E: From<DriverError>>(
    stream: &Stream,
    enqueue: impl FnOnce(&Stream) -> Result<(), E>,
) -> Result<sys::CUgraph, E> {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the stream is alive.
    checked("cuStreamBeginCapture", unsafe { result::stream::begin_capture(stream.raw(), mode) })?;
    let enqueued = enqueue(stream);
    // SAFETY: the stream is capturing; a capture must be ended even if a launch was refused.
    let graph = checked("cuStreamEndCapture", unsafe { result::stream::end_capture(stream.raw()) });
    match (enqueued, graph) {
        (Ok(()), graph) => Ok(graph?),
        (Err(e), graph) => {
            if let Ok(graph) = graph {
                // SAFETY: just captured, and not used.
                let _ = unsafe { result::graph::destroy(graph) };
            }
            Err(e)
        }
    }
}

impl Recording for Replay {
    fn replay(&self) -> Result<(), DriverError> {
        self.inner.bind()?;
        // SAFETY: both are alive; what the kernels touch was promised when the launches were recorded.
        checked("cuGraphLaunch", unsafe { result::graph::launch(self.graph, self.inner.stream.raw()) })
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if self.inner.bind().is_ok() {
            // SAFETY: instantiated by `capture`; the driver keeps it until replays that are under way are done.
            let _ = unsafe { result::graph::exec_destroy(self.graph) };
        }
    }
}

/// Launches that are enqueued and waited for one by one.
pub(super) struct OneByOne {
    inner: Arc<Inner>,
    launches: Vec<Launch>,
}

impl OneByOne {
    pub fn new(inner: &Arc<Inner>, launches: Vec<Launch>) -> Self {
        Self { inner: Arc::clone(inner), launches }
    }
}

impl Recording for OneByOne {
    fn replay(&self) -> Result<(), DriverError> {
        self.launches.iter().try_for_each(|launch| {
            // SAFETY: what the kernels touch was promised when the launches were recorded.
            unsafe { self.inner.launch(launch) }
        })
    }
}
