//! Output shapes of every operation, and the checks on its inputs.

use super::{Border, DType, Fir, GraphError, LossNoise, Op, Shape, op::Epilogue};

/// Shapes and types of the outputs of `op`, or what is wrong with its inputs.
pub(super) fn infer(op: &Op, inputs: &[(Shape, DType)]) -> Result<Vec<(Shape, DType)>, GraphError> {
    let check = Check { op, inputs };
    let outputs = check.outputs()?;
    check.types()?;
    Ok(outputs)
}

struct Check<'a> {
    op: &'a Op,
    inputs: &'a [(Shape, DType)],
}

impl Check<'_> {
    fn error(&self, detail: String) -> GraphError {
        GraphError::Shape { op: self.op.name(), inputs: self.inputs.iter().map(|i| i.0).collect(), detail }
    }

    fn shape(&self, index: usize) -> Shape {
        self.inputs[index].0
    }

    fn require(&self, ok: bool, detail: impl Fn() -> String) -> Result<(), GraphError> {
        if ok { Ok(()) } else { Err(self.error(detail())) }
    }

    fn count(&self, n: usize) -> Result<(), GraphError> {
        self.require(self.inputs.len() == n, || format!("takes {n} inputs, got {}", self.inputs.len()))
    }

    fn expect(&self, index: usize, what: &str, shape: Shape) -> Result<(), GraphError> {
        self.require(self.shape(index) == shape, || {
            format!("{what} (input {index}) must be {shape}, is {}", self.shape(index))
        })
    }

    fn image(&self, index: usize) -> Result<Shape, GraphError> {
        let s = self.shape(index);
        self.require(s.rank() == 4, || format!("input {index} must be [N,H,W,C], is {s}"))?;
        Ok(s)
    }

    fn types(&self) -> Result<(), GraphError> {
        let expected = self.op.operand_types(self.inputs.len());
        let wrong = expected.iter().zip(self.inputs).position(|(e, (_, actual))| e != actual);
        match wrong {
            None => Ok(()),
            Some(operand) => Err(GraphError::Type {
                op: self.op.name(),
                operand,
                expected: expected[operand],
                actual: self.inputs[operand].1,
            }),
        }
    }

    /// Checks the epilogue's inputs, which begin at input 2, against the output shape.
    fn epilogue(&self, e: &Epilogue, out: Shape) -> Result<(), GraphError> {
        self.count(2 + e.inputs())?;
        let mut next = 2;
        if e.bias {
            self.expect(next, "bias", [out.channels()].into())?;
            next += 1;
        }
        if e.per_image {
            self.expect(next, "per-image vector", [out.batch(), out.channels()].into())?;
            next += 1;
        }
        if e.residual {
            self.expect(next, "residual", out)?;
        }
        Ok(())
    }

    fn even(&self, s: Shape) -> Result<(usize, usize), GraphError> {
        let (h, w) = s.height_width();
        self.require(h % 2 == 0 && w % 2 == 0, || format!("H and W must be even, are {h} and {w}"))?;
        Ok((h / 2, w / 2))
    }

    fn outputs(&self) -> Result<Vec<(Shape, DType)>, GraphError> {
        use DType::{Act, F32, I32};
        let act = |s: Shape| vec![(s, Act)];
        Ok(match self.op {
            Op::TimeEmbedding(e) => {
                self.count(1)?;
                act([self.shape(0).batch(), e.dim].into())
            }
            Op::FourierEmbedding => {
                self.count(2)?;
                act([self.shape(0).batch(), 2 * self.shape(1).numel()].into())
            }
            Op::TimestepIndex { .. } => {
                self.count(1)?;
                vec![(self.shape(0), I32)]
            }
            Op::Constant { len, .. } => {
                self.count(0)?;
                vec![([*len].into(), F32)]
            }
            Op::Embedding => {
                self.count(2)?;
                act([self.shape(1).batch(), self.shape(0).channels()].into())
            }
            Op::EmbeddingGrad { vocabulary } => {
                self.count(2)?;
                vec![([*vocabulary, self.shape(0).channels()].into(), F32)]
            }
            Op::Linear(e) => {
                let (x, w) = (self.shape(0), self.shape(1));
                self.require(w.rank() == 2 && w.dims()[1] == x.channels(), || {
                    format!("weight {w} does not take {} channels", x.channels())
                })?;
                let out = x.with_channels(w.dims()[0]);
                self.epilogue(e, out)?;
                act(out)
            }
            Op::LinearDgrad { residual } => {
                self.count(2 + usize::from(*residual))?;
                let out = self.shape(0).with_channels(self.shape(1).dims()[1]);
                self.require(self.shape(0).channels() == self.shape(1).dims()[0], || {
                    "dy and weight disagree on O".into()
                })?;
                if *residual {
                    self.expect(2, "residual", out)?;
                }
                act(out)
            }
            Op::LinearWgrad { bias } => {
                self.count(2)?;
                let (dy, x) = (self.shape(0), self.shape(1));
                self.require(dy.rows() == x.rows(), || "dy and x disagree on rows".into())?;
                let mut out = vec![([dy.channels(), x.channels()].into(), F32)];
                if *bias {
                    out.push(([dy.channels()].into(), F32));
                }
                out
            }
            Op::Conv2d(g, e) => {
                let (x, w) = (self.image(0)?, self.image(1)?);
                let (h, wd) = x.height_width();
                self.require(w.channels() == x.channels() && (w.dims()[1], w.dims()[2]) == g.kernel, || {
                    format!("weight {w} is not [K, {}, {}, {}]", g.kernel.0, g.kernel.1, x.channels())
                })?;
                let (oh, ow) = g
                    .output_size(h, wd)
                    .ok_or_else(|| self.error(format!("a {h}x{wd} image is smaller than the kernel")))?;
                let out = Shape::new(&[x.batch(), oh, ow, w.batch()]);
                self.epilogue(e, out)?;
                act(out)
            }
            Op::ConvDgrad { geometry, input_size, residual } => {
                self.count(2 + usize::from(*residual))?;
                let (dy, w) = (self.image(0)?, self.image(1)?);
                self.require(
                    geometry.output_size(input_size.0, input_size.1) == Some(dy.height_width())
                        && dy.channels() == w.batch(),
                    || "dy is not an output of this convolution".into(),
                )?;
                let out = Shape::new(&[dy.batch(), input_size.0, input_size.1, w.channels()]);
                if *residual {
                    self.expect(2, "residual", out)?;
                }
                act(out)
            }
            Op::ConvWgrad { geometry, bias } => {
                self.count(2)?;
                let (dy, x) = (self.image(0)?, self.image(1)?);
                let (h, w) = x.height_width();
                self.require(geometry.output_size(h, w) == Some(dy.height_width()), || {
                    "dy is not an output of this convolution".into()
                })?;
                let (r, s) = geometry.kernel;
                let mut out = vec![([dy.channels(), r, s, x.channels()].into(), F32)];
                if *bias {
                    out.push(([dy.channels()].into(), F32));
                }
                out
            }
            Op::GroupNorm(n) => {
                self.count(3 + usize::from(n.modulated))?;
                let x = self.shape(0);
                self.require(n.groups > 0 && x.channels().is_multiple_of(n.groups), || {
                    format!("{} channels do not divide into {} groups", x.channels(), n.groups)
                })?;
                self.expect(1, "gamma", [x.channels()].into())?;
                self.expect(2, "beta", [x.channels()].into())?;
                if n.modulated {
                    self.expect(3, "scale and shift", [x.batch(), 2 * x.channels()].into())?;
                }
                vec![(x, Act), ([x.batch(), n.groups, 2].into(), F32)]
            }
            Op::GroupNormGrad(n) => {
                self.count(5 + usize::from(n.modulated))?;
                let x = self.shape(1);
                self.expect(0, "dy", x)?;
                let vector: Shape = [x.channels()].into();
                let mut out = vec![(x, Act), (vector, F32), (vector, F32)];
                if n.modulated {
                    out.push(([x.batch(), 2 * x.channels()].into(), Act));
                }
                out
            }
            Op::Attention { heads } => {
                self.count(1)?;
                let qkv = self.image(0)?;
                let c = qkv.channels() / 3;
                self.require(qkv.channels() == 3 * c && *heads > 0 && c % heads == 0, || {
                    format!("{} channels do not divide into q, k, v of {heads} heads", qkv.channels())
                })?;
                let lse = Shape::new(&[qkv.batch(), *heads, qkv.pixels()]);
                vec![(qkv.with_channels(c), Act), (lse, F32)]
            }
            Op::AttentionGrad { .. } => {
                self.count(4)?;
                self.expect(0, "dout", self.shape(2))?;
                act(self.shape(1))
            }
            Op::Upsample2x | Op::AvgPool2xGrad | Op::Fir(Fir { up: true, .. }) => {
                self.count(1)?;
                let x = self.image(0)?;
                let (h, w) = x.height_width();
                // A mirror shows the pixel next to the outermost one.
                let mirrors = matches!(self.op, Op::Fir(Fir { border: Border::Mirror, .. }));
                self.require(!mirrors || h.min(w) > 1, || format!("a {h}x{w} image cannot be mirrored"))?;
                act([x.batch(), 2 * h, 2 * w, x.channels()].into())
            }
            Op::AvgPool2x | Op::Upsample2xGrad | Op::Fir(_) => {
                self.count(1)?;
                let x = self.image(0)?;
                let (h, w) = self.even(x)?;
                act([x.batch(), h, w, x.channels()].into())
            }
            Op::Concat => {
                self.count(2)?;
                let (a, b) = (self.shape(0), self.shape(1));
                self.require(a.with_channels(1) == b.with_channels(1), || "all but the channels must agree".into())?;
                act(a.with_channels(a.channels() + b.channels()))
            }
            Op::Slice { start, len } => {
                self.count(1)?;
                let x = self.shape(0);
                self.require(start + len <= x.channels() && *len > 0, || {
                    format!("channels {start}..{} of {}", start + len, x.channels())
                })?;
                act(x.with_channels(*len))
            }
            Op::Activation(_) | Op::Affine { .. } | Op::ToAct => {
                self.count(1)?;
                act(self.shape(0))
            }
            Op::ActivationGrad(_) | Op::Add => {
                self.count(2)?;
                self.expect(1, "the second operand", self.shape(0))?;
                act(self.shape(0))
            }
            Op::AddPerImage => {
                self.count(2)?;
                let x = self.shape(0);
                self.expect(1, "the vector", [x.batch(), x.channels()].into())?;
                act(x)
            }
            Op::SumPixels => {
                self.count(1)?;
                let x = self.shape(0);
                act([x.batch(), x.channels()].into())
            }
            Op::SpreadPixels { size: (h, w) } => {
                self.count(1)?;
                let v = self.shape(0);
                self.require(v.rank() == 2, || format!("takes one vector an image, got {v}"))?;
                act([v.batch(), *h, *w, v.channels()].into())
            }
            Op::AbsMax => {
                self.count(1)?;
                vec![([1].into(), F32)]
            }
            Op::DivideByTime => {
                self.count(2)?;
                self.expect(1, "t", [self.shape(0).batch()].into())?;
                act(self.shape(0))
            }
            Op::Dropout { p, .. } => {
                self.count(3)?;
                self.require((0.0..1.0).contains(p), || format!("p = {p} is not in [0, 1)"))?;
                self.expect(1, "example index", [self.shape(0).batch()].into())?;
                act(self.shape(0))
            }
            Op::RepeatBatch => {
                self.count(1)?;
                act(self.shape(0).with_batch(2 * self.shape(0).batch()))
            }
            Op::Noising(n) => {
                self.count(3)?;
                let x = self.image(0)?;
                self.expect(1, "example index", [x.batch()].into())?;
                self.expect(2, "key", [2].into())?;
                let mut out = vec![(x, Act), ([x.batch()].into(), F32)];
                if n.eps {
                    out.push((x, F32));
                }
                out
            }
            Op::DiffusionLoss { objective, noise } => {
                self.count(5)?;
                let (out, x) = (self.image(0)?, self.image(1)?);
                let channels = x.channels() * if objective.learned_variance() { 2 } else { 1 };
                self.expect(0, "model output", x.with_channels(channels))?;
                match noise {
                    LossNoise::Given => {
                        self.expect(2, "x_t", x)?;
                        self.expect(3, "eps", x)?;
                    }
                    LossNoise::Redrawn => {
                        self.expect(2, "example index", [x.batch()].into())?;
                        self.expect(3, "key", [2].into())?;
                    }
                }
                self.expect(4, "t", [x.batch()].into())?;
                vec![([x.batch(), 3].into(), F32), (out, Act)]
            }
            Op::StepTimestep { batch, .. } => {
                self.count(1)?;
                vec![([*batch].into(), F32)]
            }
            Op::SamplerStep(s) => {
                let given = usize::from(s.noise == super::NoiseSource::Given);
                let history = s.table.history();
                let states = usize::from(history.x0_prev2) + usize::from(history.saved);
                self.count(6 + given + states + usize::from(s.classifier_scale.is_some()))?;
                let x = self.image(0)?;
                let model = x.with_batch(x.batch() * if s.guidance.is_some() { 2 } else { 1 });
                let with_variance = model.with_channels(2 * x.channels());
                // A sampler may leave the variance channels of a model unread.
                if s.table.learned_variance.is_some() || self.shape(1) != model {
                    self.expect(1, "model output", with_variance)?;
                }
                self.expect(2, "previous x_0", x)?;
                if s.noise == super::NoiseSource::Given {
                    self.expect(6, "z", x)?;
                }
                if let Some(at) = s.gradient_operand() {
                    self.expect(at, "gradient", x)?;
                }
                let mut out = vec![(x, F32), (x, F32)];
                if s.picture.is_some() {
                    out.push((x, DType::U8));
                }
                let states = [(history.x0_prev2, "second previous x_0"), (history.saved, "saved state")];
                for (i, (_, name)) in states.into_iter().filter(|(used, _)| *used).enumerate() {
                    self.expect(6 + given + i, name, x)?;
                    out.push((x, F32));
                }
                out
            }
            Op::PoolTokens => {
                self.count(2)?;
                let x = self.image(0)?;
                self.expect(1, "positions", [x.channels(), x.pixels() + 1].into())?;
                act([x.batch(), 1, x.pixels() + 1, x.channels()].into())
            }
            Op::PoolTokensGrad { size: (h, w) } => {
                self.count(1)?;
                let dy = self.image(0)?;
                self.require(dy.height_width() == (1, h * w + 1), || format!("not the tokens of {h}x{w} pixels"))?;
                act([dy.batch(), *h, *w, dy.channels()].into())
            }
            Op::FirstToken => {
                self.count(1)?;
                let x = self.image(0)?;
                self.require(x.height_width().0 == 1, || "tokens lie in one row".into())?;
                act([x.batch(), x.channels()].into())
            }
            Op::FirstTokenGrad { tokens } => {
                self.count(1)?;
                act([self.shape(0).batch(), 1, *tokens, self.shape(0).channels()].into())
            }
            Op::LogProbability => {
                self.count(2)?;
                let logits = self.shape(0);
                self.require(logits.rank() == 2, || format!("logits must be [N,K], are {logits}"))?;
                self.expect(1, "label", [logits.batch()].into())?;
                vec![([logits.batch()].into(), F32), (logits, Act)]
            }
            Op::Advance => {
                self.count(1)?;
                vec![(self.shape(0), I32)]
            }
            Op::GlobalNorm => vec![([1].into(), F32)],
            Op::AdamW(_) => {
                self.require(self.inputs.len() > 2, || "no gradients".into())?;
                Vec::new()
            }
        })
    }
}
