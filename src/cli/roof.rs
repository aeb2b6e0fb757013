//! `--roof-tflops`, `--roof-gbs` and `--roof-gnormals`.

use crate::bench::roof::Given;

/// Options of the commands that compare with roofs.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct RoofArgs {
    /// 10^12 operations a second that the device reaches at best, in place of the known number.
    #[arg(long, value_name = "TFLOP/s")]
    roof_tflops: Option<f64>,
    /// 10^9 bytes a second that the device reads and writes at best, in place of the known number.
    #[arg(long, value_name = "GB/s")]
    roof_gbs: Option<f64>,
    /// 10^9 normal random numbers a second that the device draws at best, in place of the known number.
    #[arg(long, value_name = "G/s", hide_short_help = true)]
    roof_gnormals: Option<f64>,
}

impl RoofArgs {
    /// What was given.
    pub fn given(self) -> Given {
        Given { tflops: self.roof_tflops, gbs: self.roof_gbs, gnormals: self.roof_gnormals }
    }
}
