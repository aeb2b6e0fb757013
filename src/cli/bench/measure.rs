//! Measuring one line.

use std::time::Duration;

use anyhow::Result;

use super::line::Line;
use super::machine::Machine;
use super::row::{PeerRow, Row};
use crate::backend::Executable;
use crate::bench::program::{Noise, Program};
use crate::bench::race::{self, Protocol, Runner};
use crate::bench::roof::Roof;
use crate::bench::{Pass, Product, Work};
use crate::compare::rule::Errors;
use crate::peer::{Peer, PeerProduct, ResultType};

/// Results of a peer may be off by so much, in the norm: far more than two bf16 roundings and other orders of sums, far
/// less than any wrong descriptor.
const AGREEMENT: f64 = 2e-2;
/// Elements that are compared at either end of a result.
const COMPARED: usize = 1 << 20;

/// All that a line needs.
pub(super) struct Measuring<'a> {
    pub machine: &'a Machine,
    /// The network that the lines belong to.
    pub network: Option<&'a str>,
    /// Measured in turn, and how long its fastest algorithm is searched for.
    pub peer: Option<(&'a Peer, Duration)>,
    pub noise: &'a Noise,
    pub roof: &'a Roof,
    pub protocol: Protocol,
}

impl Measuring<'_> {
    /// One line of the report, with what went wrong in it.
    pub fn row(&self, line: &Line) -> Row {
        let mut row = Row::new(line, self.network);
        if let Err(error) = self.fill(&line.work, &mut row) {
            row.error = Some(format!("{error:#}"));
        }
        row
    }

    fn fill(&self, work: &Work, row: &mut Row) -> Result<()> {
        row.amount = work.amount(self.machine.backend.precision())?;
        row.floor = self.roof.least(&row.amount);
        let (bytes, room) = (row.amount.bytes as usize, self.machine.memory());
        row.copies = self.machine.copies(bytes).min(work.most_copies());
        if bytes > room {
            row.error = Some(format!("not measured: its operands take {} MiB, {} are there", bytes >> 20, room >> 20));
            row.skipped = true;
            return Ok(());
        }
        let program = work.program(row.copies)?;
        let mut exe = self.machine.backend.compile(program.plan.clone())?;
        program.fill(exe.as_mut(), self.noise)?;
        let mut peer = match work {
            Work::Product(product, pass) => self.prepare_peer(product, *pass, row),
            Work::Operation(_) => None,
        };
        if let (Some(theirs), Work::Product(product, pass)) = (&mut peer, work) {
            exe.run()?;
            exe.finish()?;
            let elements = product.operands(*pass)[2];
            if !check(row, elements, &program, exe.as_ref(), theirs)? {
                peer = None;
            }
        }
        if !program.is_given(exe.as_mut())? {
            row.error = Some("not measured: here the norm computes its statistics itself".into());
            row.skipped = true;
            return Ok(());
        }
        let launches = program.copies();
        let mut ours = |replays: usize| Ok::<Duration, anyhow::Error>(program.timed(exe.as_mut(), replays)?);
        let mut candidate = Runner { launches, timed: &mut ours };
        let outcome = match &mut peer {
            None => race::race(&mut candidate, None, &self.protocol)?,
            Some(theirs) => {
                let mut theirs = |replays: usize| Ok(theirs.timed(replays)?);
                race::race(&mut candidate, Some(&mut Runner { launches, timed: &mut theirs }), &self.protocol)?
            }
        };
        row.set(outcome);
        Ok(())
    }

    /// The peer's fastest way; what keeps it from running is the peer's failure and not the line's.
    fn prepare_peer(&self, product: &Product, pass: Pass, row: &mut Row) -> Option<PeerProduct> {
        let (peer, search) = self.peer?;
        let wanted = if pass == Pass::Wgrad { ResultType::F32 } else { ResultType::Bf16 };
        match peer.prepare(product, pass, row.copies, self.noise, wanted, search) {
            Ok(prepared) => {
                row.peer = Some(PeerRow::new(&prepared));
                Some(prepared)
            }
            Err(error) => {
                row.peer = Some(PeerRow::failed(error.to_string()));
                None
            }
        }
    }
}

/// Whether the peer computes the same as we do, at both ends of the first and of the last copy.
fn check(
    row: &mut Row,
    elements: usize,
    program: &Program,
    exe: &dyn Executable,
    peer: &mut PeerProduct,
) -> Result<bool> {
    peer.compute()?;
    let len = elements.min(COMPARED);
    let mut worst = 0.0f64;
    for copy in [0, program.copies() - 1] {
        for first in [0, elements - len] {
            let (mut ours, mut theirs) = (vec![0.0; len], vec![0.0; len]);
            exe.read_part(program.results(copy)[0], first, &mut ours)?;
            peer.read_part(copy, first, &mut theirs)?;
            worst = worst.max(disagreement(&ours, &theirs));
        }
    }
    if let Some(of) = &mut row.peer {
        of.agrees(worst, AGREEMENT);
    }
    Ok(worst <= AGREEMENT)
}

/// How far two results are apart, in the norm; infinite where either is not a number.
fn disagreement(ours: &[f32], theirs: &[f32]) -> f64 {
    let wide = |x: &[f32]| x.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    Errors::between(&wide(ours), &wide(theirs)).norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_result_is_no_peer() {
        let ours: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
        let near: Vec<f32> = ours.iter().map(|x| x * 1.004).collect();
        let far: Vec<f32> = ours.iter().rev().copied().collect();
        assert!(disagreement(&ours, &near) < AGREEMENT);
        assert!(disagreement(&ours, &far) > AGREEMENT);
        // Poison that nobody overwrote, and zeros.
        assert_eq!(disagreement(&ours, &[f32::NAN; 1000]), f64::INFINITY);
        assert!(disagreement(&ours, &[0.0; 1000]) > AGREEMENT);
        assert!(disagreement(&[0.0; 1000], &ours) > AGREEMENT);
    }
}
