//! What every driver must do, with the elementwise kernels. Each check takes a device of its own.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use warpdiff::backend::gpu::driver::{DevicePtr, Driver, DriverError, Swizzle, TensorMapSpec};
use warpdiff::backend::gpu::launch::{Args, Config, Launch};
use warpdiff::backend::gpu::{Gpu, Replay};
use warpdiff::backend::{Backend, Executable, Precision};
use warpdiff::graph::{Activation, DType, Graph, Op, Plan, ValueId};
use warpdiff::rng::{Sequence, Stream};

/// `struct MapArgs` of `kernels/elementwise/map.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct MapArgs {
    a: DevicePtr,
    b: DevicePtr,
    y: DevicePtr,
    count: u64,
    mul: f32,
    add: f32,
}

const COUNT: usize = 4099;
const BYTES: usize = 4 * COUNT;

pub fn normals(n: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Sequence::new(seed, Stream::InitialNoise, 0, 0).fill_normal(&mut x);
    x
}

/// Memory that is freed at the end.
struct Memory<'a> {
    driver: &'a dyn Driver,
    at: DevicePtr,
    bytes: usize,
}

impl<'a> Memory<'a> {
    fn new(driver: &'a dyn Driver, bytes: usize) -> Self {
        Self { driver, at: driver.allocate(bytes).unwrap(), bytes }
    }

    fn of<T: Pod>(driver: &'a dyn Driver, data: &[T]) -> Self {
        let memory = Self::new(driver, size_of_val(data));
        memory.write(0, bytemuck::cast_slice(data));
        memory
    }

    fn write(&self, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= self.bytes);
        // SAFETY: the range lies in the allocation.
        unsafe { self.driver.upload(self.at.offset(offset), data).unwrap() };
    }

    fn read(&self) -> Vec<u8> {
        let mut data = vec![0; self.bytes];
        // SAFETY: the range is the allocation.
        unsafe { self.driver.download(self.at, &mut data).unwrap() };
        data
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // SAFETY: the allocation of `new`.
        unsafe { self.driver.free(self.at, self.bytes) };
    }
}

fn map(driver: &dyn Driver, kernel: &str, [a, b, y]: [DevicePtr; 3], shared: u32) -> Launch {
    let loaded = driver.load(kernel).unwrap();
    assert_eq!(loaded.args_bytes, size_of::<MapArgs>(), "{kernel}");
    let config = Config { grid: [3, 1, 1], block: 256, cluster: 1, shared };
    Launch {
        name: kernel.into(),
        kernel: loaded.id,
        config,
        args: Args::new(&MapArgs { a, b, y, count: COUNT as u64, mul: 1.0, add: 0.0 }),
    }
}

/// Copies of every size arrive whole and in order, whatever happens to the host's data afterwards.
pub fn copies_arrive(driver: &dyn Driver) {
    // More than any staging buffer, at odd offsets.
    let total: usize = (37 << 20) + 5;
    let memory = Memory::new(driver, total);
    let pattern = |round: usize| (0..total).map(move |i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ round as u8);
    for (round, piece) in [total, (8 << 20) + 3, 999_983].into_iter().enumerate() {
        let mut expected: Vec<u8> = pattern(round).collect();
        for (i, chunk) in expected.chunks_mut(piece).enumerate() {
            memory.write(i * piece, chunk);
            // The device must not see this.
            chunk.fill(0xAA);
        }
        assert!(memory.read().into_iter().eq(pattern(round)), "pieces of {piece} bytes");
    }
    // Many small copies, the last wins.
    for i in 0..20_000u32 {
        memory.write(4 * (i as usize % 5), &i.to_le_bytes());
    }
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(&memory.read()[..20]);
    assert_eq!(words, [19_995, 19_996, 19_997, 19_998, 19_999]);
    // SAFETY: the range lies in the allocation.
    unsafe { driver.fill(memory.at.offset(3), 7, 11).unwrap() };
    let bytes = memory.read();
    assert!(bytes[3..14].iter().all(|&b| b == 7) && bytes[2] == words[0].to_le_bytes()[2]);
}

/// The loop x = silu(x + b), y = y + x, launch by launch or as a recording, gives the same bits.
pub fn replay_equals_eager_launches(driver: &dyn Driver) {
    let run = |recorded: bool| {
        let [x, b, y] = [1, 2, 3].map(|seed| Memory::of(driver, &normals(COUNT, seed)));
        let launches = vec![
            map(driver, "add_f32", [x.at, b.at, x.at], 0),
            map(driver, "silu_f32", [x.at, DevicePtr::NULL, x.at], 0),
            map(driver, "add_f32", [y.at, x.at, y.at], 0),
        ];
        if recorded {
            // SAFETY: the memory outlives the recording.
            let recording = unsafe { driver.record(launches, false).unwrap() };
            (0..5).for_each(|_| recording.replay().unwrap());
        } else {
            for launch in (0..5).flat_map(|_| &launches) {
                // SAFETY: the memory outlives the launch.
                unsafe { driver.launch(launch).unwrap() };
            }
        }
        (x.read(), y.read())
    };
    let (eager, replayed) = (run(false), run(true));
    assert!(eager == replayed, "a replay differs from its launches");
    let mut expected = normals(COUNT, 3);
    let mut x = normals(COUNT, 1);
    for _ in 0..5 {
        for ((x, b), y) in x.iter_mut().zip(normals(COUNT, 2)).zip(&mut expected) {
            let v = f64::from(*x + b);
            *x = (v / (1.0 + (-v).exp())) as f32;
            *y += *x;
        }
    }
    let y: Vec<f32> = bytemuck::pod_collect_to_vec(&replayed.1);
    let worst = y.iter().zip(&expected).map(|(a, e)| f64::from((a - e).abs())).fold(0.0, f64::max);
    assert!(worst < 1e-5, "worst element {worst:e}");
}

/// A snapshot holds what was there when it was taken, however the memory changes afterwards and in whatever order snapshots are
/// read or dropped.
pub fn snapshots_hold_their_moment(driver: &dyn Driver) {
    let x = Memory::of(driver, &normals(COUNT, 1));
    let silu = map(driver, "silu_f32", [x.at, DevicePtr::NULL, x.at], 0);
    // Eager copies of every moment first.
    let moments: Vec<Vec<u8>> = (0..9)
        .map(|_| {
            // SAFETY: the memory outlives the launch.
            unsafe { driver.launch(&silu).unwrap() };
            x.read()
        })
        .collect();
    x.write(0, bytemuck::cast_slice(&normals(COUNT, 1)));
    let mut pending = std::collections::VecDeque::new();
    for (i, moment) in moments.iter().enumerate() {
        // SAFETY: as above.
        unsafe { driver.launch(&silu).unwrap() };
        // Pieces of several sizes, some of them nobody's for long.
        let (first, len) = ([0, 5, 256][i % 3], [BYTES - 300, 1, 4096][i % 3]);
        // SAFETY: the range lies in the allocation.
        let (taken, unread) =
            unsafe { (driver.snapshot(x.at.offset(first), len).unwrap(), driver.snapshot(x.at, 64).unwrap()) };
        drop(unread);
        pending.push_back((taken, &moment[first..first + len]));
        if pending.len() > 3 {
            let (mut taken, expected) = if i % 2 == 0 { pending.pop_back() } else { pending.pop_front() }.unwrap();
            assert!(taken.wait().unwrap() == expected, "moment {i}");
            assert!(taken.arrived() && taken.wait().unwrap() == expected, "a snapshot can be read twice");
        }
    }
    for (mut taken, expected) in pending {
        assert!(taken.wait().unwrap() == expected);
    }
}

/// What cannot be done is an error that says so, and the device goes on.
pub fn refusals_are_errors(driver: &dyn Driver) {
    assert!(matches!(driver.load("no_such_kernel"), Err(DriverError::MissingKernel(name)) if name == "no_such_kernel"));
    let memory = Memory::of(driver, &normals(COUNT, 1));
    let at = memory.at;
    let mut launch = map(driver, "silu_f32", [at, DevicePtr::NULL, at], 0);
    // No device has blocks of so many threads.
    launch.config.block = 4096;
    // SAFETY: the launch is refused.
    let error = unsafe { driver.launch(&launch) }.unwrap_err();
    assert!(matches!(&error, DriverError::Launch { kernel, .. } if kernel == "silu_f32"), "{error}");
    // SAFETY: as above.
    let error = unsafe { driver.record(vec![launch], false) }.and_then(|recording| recording.replay()).unwrap_err();
    assert!(error.to_string().contains("silu_f32"), "{error}");
    // All the shared memory that there is.
    let launch = map(driver, "silu_f32", [at, DevicePtr::NULL, at], driver.limits().shared_bytes);
    // SAFETY: the memory outlives the launch.
    unsafe { driver.launch(&launch).unwrap() };
    driver.synchronize().unwrap();
}

/// Launches a kernel that writes to an address, and waits for it.
pub fn write_to(driver: &dyn Driver, y: DevicePtr) -> Result<(), DriverError> {
    let memory = Memory::of(driver, &normals(COUNT, 1));
    // SAFETY: the address is nobody's; the device refuses it.
    unsafe { driver.launch(&map(driver, "silu_f32", [memory.at, DevicePtr::NULL, y], 0))? };
    driver.synchronize()
}

/// Times are those of the work, and its errors come through.
pub fn times_are_measured(driver: &dyn Driver) {
    let memory = Memory::of(driver, &normals(COUNT, 1));
    let launch = map(driver, "silu_f32", [memory.at, DevicePtr::NULL, memory.at], 0);
    let mut ran = 0;
    let mut work = || {
        ran += 1;
        // SAFETY: the memory outlives the launch.
        (0..50).try_for_each(|_| unsafe { driver.launch(&launch) })
    };
    let begin = std::time::Instant::now();
    let time = driver.elapsed(&mut work).unwrap();
    assert!(!time.is_zero() && time <= begin.elapsed(), "{time:?}");
    assert_eq!(ran, 1);
    let failed = driver.elapsed(&mut || Err(DriverError::MissingKernel("x".into())));
    assert!(matches!(failed, Err(DriverError::MissingKernel(_))));
}

/// x' = silu(x + b) as a program with a state, as a sampling loop is one.
fn loop_on(driver: &Arc<dyn Driver>, precision: Precision, replay: Replay) -> (Box<dyn Executable>, ValueId) {
    let mut graph = Graph::new();
    let x = graph.state("x", [1, 3, 5, 7], DType::Act);
    let b = graph.input("b", [1, 3, 5, 7], DType::Act);
    let sum = graph.apply(Op::Add, &[x, b]).unwrap();
    let next = graph.apply(Op::Activation(Activation::Silu), &[sum]).unwrap();
    graph.bind(next, x);
    let mut exe = Gpu::new(Arc::clone(driver), precision).with_replay(replay).compile(Plan::new(graph)).unwrap();
    exe.write_f32(x, &normals(105, 4)).unwrap();
    exe.write_f32(b, &normals(105, 5)).unwrap();
    (exe, x)
}

/// Runs in a row, runs that are waited for, timed runs, several runs in one recording and launches that overlap all give the same
/// bits.
pub fn many_runs_equal_single_runs(driver: &Arc<dyn Driver>) {
    let plain = Replay::default();
    for precision in [Precision::F32, Precision::Bf16] {
        let run_as = |replay: Replay, how: &dyn Fn(&mut dyn Executable)| {
            let (mut exe, x) = loop_on(driver, precision, replay);
            how(exe.as_mut());
            let mut data = vec![0.0f32; 105];
            exe.read_f32(x, &mut data).unwrap();
            data.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let run = |how: &dyn Fn(&mut dyn Executable)| run_as(plain, how);
        let start = run(&|_| {});
        let single = run(&|exe| {
            for _ in 0..7 {
                exe.run().unwrap();
                exe.finish().unwrap();
            }
        });
        assert_ne!(start, single);
        assert_eq!(single, run(&|exe| exe.run_many(7).unwrap()), "{precision}");
        let timed = run(&|exe| assert!(!exe.run_timed(7).unwrap().is_zero()));
        assert_eq!(single, timed, "{precision}");
        assert_eq!(start, run(&|exe| exe.run_many(0).unwrap()));
        for (runs, overlap) in [(3, false), (1, true), (4, true), (8, true)] {
            let long = run_as(Replay { runs, overlap }, &|exe| {
                exe.run_many(3).unwrap();
                assert!(!exe.run_timed(4).unwrap().is_zero());
            });
            assert_eq!(single, long, "{precision}, {runs} runs a recording, overlap: {overlap}");
        }
    }
}

/// Maps of every element and swizzle are encoded, and those beyond the rules refused in words.
pub fn tensor_maps_are_encoded_or_refused(driver: &dyn Driver) {
    let memory = Memory::new(driver, 1 << 14);
    let swizzles = [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128];
    let mut maps = Vec::new();
    for element_bytes in [1, 2, 4] {
        for (i, swizzle) in swizzles.into_iter().enumerate() {
            // Every other pixel of every other row: strides of no order.
            let spec = TensorMapSpec {
                base: memory.at.offset(32),
                element_bytes,
                dims: vec![8, 3, 2, 3],
                strides: vec![64, 320, 800],
                box_dims: vec![(16 << i.saturating_sub(1)) / element_bytes, 4, 2, 2],
                swizzle,
            };
            maps.push(driver.tensor_map(&spec).unwrap());
            let wide = TensorMapSpec { box_dims: vec![256 / element_bytes, 1, 1, 1], ..spec.clone() };
            assert_eq!(driver.tensor_map(&wide).is_ok(), swizzle == Swizzle::None, "{wide:?}");
            let odd = TensorMapSpec { base: spec.base.offset(8), ..spec };
            let refusal = driver.tensor_map(&odd).unwrap_err().to_string();
            assert!(refusal.contains("no multiple of 16"), "{refusal}");
        }
    }
    assert!((1..maps.len()).all(|i| !maps[..i].contains(&maps[i])));
}
