//! Parameters: how the tensors of a weights file are laid out in the graph.

use super::Shape;

/// A parameter of a [`super::Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) u32);

impl ParamId {
    /// The parameter at a position of [`super::Graph::params`].
    pub fn new(index: usize) -> Self {
        Self(index as u32)
    }

    /// Position in [`super::Graph::params`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How a named tensor of the weights file maps to the graph's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamLayout {
    /// The same order of elements.
    AsIs,
    /// `[O, I, R, S]` in the file, `[O, R, S, I]` in the graph.
    ConvOihw,
}

/// One tensor of the weights file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamPart {
    /// Its name, as diffusers writes it.
    pub name: String,
    /// Its shape in the file.
    pub file_shape: Vec<usize>,
}

/// A parameter of the graph: one tensor of the file, or several stacked along their first dimension.
///
/// Stacking is what turns three projections of an attention layer into one matrix product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// Name in reports: that of the only part, or of the stack.
    pub name: String,
    /// Shape in the graph.
    pub shape: Shape,
    /// The tensors it is made of, in order.
    pub parts: Vec<ParamPart>,
    /// How each part is stored.
    pub layout: ParamLayout,
}

impl ParamSpec {
    /// A parameter whose file shape is its graph shape.
    pub fn plain(name: impl Into<String>, shape: &[usize]) -> Self {
        let name = name.into();
        Self {
            shape: shape.into(),
            parts: vec![ParamPart { name: name.clone(), file_shape: shape.to_vec() }],
            name,
            layout: ParamLayout::AsIs,
        }
    }

    /// A convolution weight, `[k, c, r, s]` in the file.
    pub fn conv(name: impl Into<String>, k: usize, c: usize, (r, s): (usize, usize)) -> Self {
        let name = name.into();
        Self {
            shape: [k, r, s, c].into(),
            parts: vec![ParamPart { name: name.clone(), file_shape: vec![k, c, r, s] }],
            name,
            layout: ParamLayout::ConvOihw,
        }
    }

    /// A 1x1 convolution weight, `[o, i, 1, 1]` in the file and a matrix in the graph.
    pub fn pointwise(name: impl Into<String>, o: usize, i: usize) -> Self {
        let mut spec = Self::plain(name, &[o, i]);
        spec.parts[0].file_shape = vec![o, i, 1, 1];
        spec
    }

    /// Equally shaped tensors, one below the other.
    pub fn stacked(name: impl Into<String>, parts: &[String], part_shape: &[usize]) -> Self {
        let mut shape = part_shape.to_vec();
        shape[0] *= parts.len();
        Self {
            name: name.into(),
            shape: shape.as_slice().into(),
            parts: parts.iter().map(|name| ParamPart { name: name.clone(), file_shape: part_shape.to_vec() }).collect(),
            layout: ParamLayout::AsIs,
        }
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.numel()
    }

    /// Copies a part from the file's order of elements into this parameter's slice of the flat store.
    pub fn import(&self, part: usize, file: &[f32], store: &mut [f32]) {
        let dst = self.part_mut(part, store);
        match self.layout {
            ParamLayout::AsIs => dst.copy_from_slice(file),
            ParamLayout::ConvOihw => self.permute(|graph, oihw| dst[graph] = file[oihw]),
        }
    }

    /// The inverse of [`ParamSpec::import`].
    pub fn export(&self, part: usize, store: &[f32]) -> Vec<f32> {
        let src = self.part(part, store);
        match self.layout {
            ParamLayout::AsIs => src.to_vec(),
            ParamLayout::ConvOihw => {
                let mut file = vec![0.0; src.len()];
                self.permute(|graph, oihw| file[oihw] = src[graph]);
                file
            }
        }
    }

    fn part<'a>(&self, part: usize, store: &'a [f32]) -> &'a [f32] {
        let len = self.numel() / self.parts.len();
        &store[part * len..(part + 1) * len]
    }

    fn part_mut<'a>(&self, part: usize, store: &'a mut [f32]) -> &'a mut [f32] {
        let len = self.numel() / self.parts.len();
        &mut store[part * len..(part + 1) * len]
    }

    /// Calls `f(index in K·R·S·C, index in O·I·R·S)` for every element.
    fn permute(&self, mut f: impl FnMut(usize, usize)) {
        let [k, r, s, c] = self.shape.dims()[..] else {
            unreachable!("a convolution weight has four dimensions");
        };
        let mut graph = 0;
        for ki in 0..k {
            for ri in 0..r {
                for si in 0..s {
                    for ci in 0..c {
                        f(graph, ((ki * c + ci) * r + ri) * s + si);
                        graph += 1;
                    }
                }
            }
        }
    }
}
