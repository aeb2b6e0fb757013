//! The memory of a plan on the CPU, and disjoint views into it.
//!
//! All of it is f32, a word of 4 bytes an element. Values of other types lie in it as the bits of words: integers one a
//! word, bytes four a word in the order of memory ([`bytes`], [`bytes_mut`]), the last word perhaps not full. Places are
//! aligned to more than a word, so that words are never shared.

use std::alloc::{Layout, alloc_zeroed};

use crate::backend::BackendError;
use crate::graph::{DType, Place, Plan, Region, ValueId};

/// In the order of their discriminants, which index [`Memory`].
const REGIONS: [Region; 4] = [Region::Persistent, Region::Params, Region::Grads, Region::Arena];

/// One cache line; buffers made of it are aligned for every vector width.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A zeroed buffer of f32 that begins on a cache line.
pub(super) struct Buffer(Vec<Line>);

impl Buffer {
    /// Asks the allocator directly: `vec!` would end the process where the memory is not there.
    pub fn zeroed(len: usize) -> Result<Self, BackendError> {
        let lines = len.div_ceil(16);
        if lines == 0 {
            return Ok(Self(Vec::new()));
        }
        let missing = || BackendError::Memory { bytes: lines.saturating_mul(size_of::<Line>()) };
        let layout = Layout::array::<Line>(lines).map_err(|_| missing())?;
        // SAFETY: the layout's size is not 0.
        let pointer = unsafe { alloc_zeroed(layout) };
        if pointer.is_null() {
            return Err(missing());
        }
        // SAFETY: the global allocator gave the memory for this many lines, and zeros are valid lines.
        Ok(Self(unsafe { Vec::from_raw_parts(pointer.cast(), lines, lines) }))
    }

    pub fn slice(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    pub fn slice_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    pub fn bytes(&self) -> usize {
        self.0.len() * size_of::<Line>()
    }
}

/// Words `start..start + len` of a region; empty for an operand that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    region: usize,
    start: usize,
    len: usize,
}

impl Span {
    pub const NONE: Span = Span { region: 0, start: 0, len: 0 };

    /// The same elements of another buffer that is laid out like the span's region.
    pub fn of(self, buffer: &[f32]) -> &[f32] {
        &buffer[self.start..][..self.len]
    }

    /// As [`Span::of`].
    pub fn of_mut(self, buffer: &mut [f32]) -> &mut [f32] {
        &mut buffer[self.start..][..self.len]
    }

    fn overlaps(&self, other: &Span) -> bool {
        self.len > 0
            && other.len > 0
            && self.region == other.region
            && self.start < other.start + other.len
            && other.start < self.start + self.len
    }
}

impl From<Place> for Span {
    fn from(place: Place) -> Self {
        Self { region: place.region as usize, start: place.offset / 4, len: place.len.div_ceil(4) }
    }
}

/// The regions of a plan.
pub(super) struct Memory {
    regions: [Buffer; 4],
}

impl Memory {
    /// Allocates what the plan asks for. In debug builds the arena starts as NaN, so that a value that is read before
    /// it is written shows.
    pub fn new(plan: &Plan) -> Result<Self, BackendError> {
        let [persistent, params, grads, arena] = REGIONS.map(|r| Buffer::zeroed(plan.region_bytes(r) / 4));
        let mut memory = Self { regions: [persistent?, params?, grads?, arena?] };
        if cfg!(debug_assertions) {
            memory.regions[Region::Arena as usize].slice_mut().fill(f32::NAN);
        }
        Ok(memory)
    }

    pub fn bytes(&self) -> usize {
        self.regions.iter().map(Buffer::bytes).sum()
    }

    pub fn region(&self, region: Region) -> &[f32] {
        self.regions[region as usize].slice()
    }

    pub fn get(&self, span: Span) -> &[f32] {
        &self.regions[span.region].slice()[span.start..][..span.len]
    }

    pub fn get_mut(&mut self, span: Span) -> &mut [f32] {
        &mut self.regions[span.region].slice_mut()[span.start..][..span.len]
    }

    /// Views of some spans to read and others to write.
    ///
    /// A span that is both read and written is given to the writer alone; its reader gets an empty slice. That is how
    /// operations bound to a state run in place.
    ///
    /// # Panics
    /// If spans overlap in any other way: the planner's guarantee is broken.
    pub fn split<const R: usize, const W: usize>(
        &mut self,
        reads: [Span; R],
        writes: [Span; W],
    ) -> ([&[f32]; R], [&mut [f32]; W]) {
        for (i, w) in writes.iter().enumerate() {
            assert!(!writes[..i].iter().any(|o| o.overlaps(w)), "overlapping writes");
            assert!(!reads.iter().any(|r| r != w && r.overlaps(w)), "a read overlaps a write");
        }
        let bases: [*mut f32; 4] = self.regions.each_mut().map(|b| b.slice_mut().as_mut_ptr());
        let lens: [usize; 4] = self.regions.each_ref().map(|b| b.slice().len());
        let pointer = |s: &Span| {
            assert!(s.start + s.len <= lens[s.region], "a span ends beyond its region");
            // SAFETY: the span lies within its region, as just checked.
            unsafe { bases[s.region].add(s.start) }
        };
        let read = |s: &Span| {
            let len = if writes.contains(s) { 0 } else { s.len };
            // SAFETY: the span lies within a live buffer that `self` borrows mutably for the result's lifetime, and no
            // written span overlaps it.
            unsafe { std::slice::from_raw_parts(pointer(s).cast_const(), len) }
        };
        let write = |s: &Span| {
            // SAFETY: as above; written spans overlap neither each other nor any slice handed out for reading.
            unsafe { std::slice::from_raw_parts_mut(pointer(s), s.len) }
        };
        (reads.each_ref().map(read), writes.each_ref().map(write))
    }
}

/// The span of every value of a plan, so that a run looks nothing up twice.
pub(super) fn spans(plan: &Plan) -> Vec<Span> {
    (0..plan.graph().values().len()).map(|i| plan.place(ValueId(i as u32)).map_or(Span::NONE, Span::from)).collect()
}

/// The bytes that words hold.
pub(super) fn bytes(words: &[f32]) -> &[u8] {
    bytemuck::cast_slice(words)
}

/// As [`bytes`].
pub(super) fn bytes_mut(words: &mut [f32]) -> &mut [u8] {
    bytemuck::cast_slice_mut(words)
}

/// Whether a value holds integers, which are kept as the bits of the floats.
pub(super) fn is_integer(plan: &Plan, value: ValueId) -> bool {
    plan.graph().value(value).dtype == DType::I32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: usize, len: usize) -> Span {
        Span { region: 0, start, len }
    }

    fn memory(len: usize) -> Memory {
        let mut m = Memory { regions: [len, 0, 0, 0].map(|len| Buffer::zeroed(len).unwrap()) };
        for (i, v) in m.regions[0].slice_mut().iter_mut().enumerate() {
            *v = i as f32;
        }
        m
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        for len in [usize::MAX, usize::MAX / 8, 1 << 58] {
            assert!(matches!(Buffer::zeroed(len), Err(BackendError::Memory { .. })), "{len}");
        }
        assert_eq!(Buffer::zeroed(0).unwrap().slice(), [0.0f32; 0]);
        assert_eq!(Buffer::zeroed(17).unwrap().slice(), [0.0; 32]);
    }

    #[test]
    fn views_show_and_change_their_spans() {
        let mut m = memory(32);
        let ([a, none], [b]) = m.split([span(3, 2), Span::NONE], [span(5, 4)]);
        assert_eq!((a, none.len()), (&[3.0, 4.0][..], 0));
        b.fill(-1.0);
        assert_eq!(m.get(span(4, 6)), [4.0, -1.0, -1.0, -1.0, -1.0, 9.0]);
    }

    #[test]
    fn bytes_take_the_words_that_hold_them() {
        let place = |len| Span::from(Place { region: Region::Persistent, offset: 256, len });
        assert_eq!([1, 4, 5, 75].map(|len| place(len).len), [1, 1, 2, 19]);
        let mut m = memory(128);
        bytes_mut(m.get_mut(place(75)))[..75].copy_from_slice(&[7; 75]);
        assert_eq!(bytes(m.get(place(75)))[..75], [7; 75]);
        // The rest of the last word, and its neighbours, are as before.
        assert_eq!(bytes(m.get(place(76)))[75], 82f32.to_ne_bytes()[3]);
        assert_eq!((m.get(span(63, 1))[0], m.get(span(83, 1))[0]), (63.0, 83.0));
    }

    #[test]
    fn a_span_read_and_written_goes_to_the_writer() {
        let mut m = memory(32);
        let ([a], [b]) = m.split([span(2, 3)], [span(2, 3)]);
        assert!(a.is_empty());
        assert_eq!(b, [2.0, 3.0, 4.0]);
    }

    #[test]
    #[should_panic(expected = "a read overlaps a write")]
    fn a_partial_overlap_is_refused() {
        memory(32).split([span(0, 4)], [span(3, 4)]);
    }
}
