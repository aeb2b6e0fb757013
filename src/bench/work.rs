//! What a line of a report measures.

use super::program::Program;
use super::roof::{self, Amount};
use super::{Operation, Pass, Product};
use crate::backend::Precision;
use crate::graph::GraphError;

/// A product or another operation.
#[derive(Clone, Debug)]
pub enum Work {
    /// A pass of a convolution or a linear layer.
    Product(Product, Pass),
    /// Anything else.
    Operation(Operation),
}

impl Work {
    /// The command that measures it.
    pub fn family(&self) -> &'static str {
        match self {
            Self::Product(Product::Conv(_), _) => "conv",
            Self::Product(Product::Gemm(_), _) => "gemm",
            Self::Operation(operation) => operation.family.name(),
        }
    }

    /// Its shape.
    pub fn name(&self) -> String {
        match self {
            Self::Product(product, _) => product.to_string(),
            Self::Operation(operation) => operation.name.clone(),
        }
    }

    /// Which of the operations of that shape.
    pub fn pass(&self) -> &'static str {
        match self {
            Self::Product(_, pass) => pass.name(),
            Self::Operation(operation) => operation.pass,
        }
    }

    /// What it has to do at least.
    ///
    /// # Errors
    /// [`GraphError`] if the shape is none.
    pub fn amount(&self, precision: Precision) -> Result<Amount, GraphError> {
        match self {
            Self::Product(product, pass) => Ok(roof::amount(product, *pass, precision)),
            Self::Operation(operation) => {
                let program = Program::of(operation, 1)?;
                let graph = program.plan.graph();
                // The last node: a product may stand before it.
                Ok(graph.nodes().last().map(|node| Amount::of(graph, node, precision)).unwrap_or_default())
            }
        }
    }

    /// Most copies of it that a plan can hold.
    pub fn most_copies(&self) -> usize {
        match self {
            Self::Operation(operation) if operation.is_optimizer() => 1,
            _ => usize::MAX,
        }
    }

    /// A plan of so many copies.
    ///
    /// # Errors
    /// [`GraphError`] if the shape is none.
    pub fn program(&self, copies: usize) -> Result<Program, GraphError> {
        match self {
            Self::Product(product, pass) => Program::new(product, *pass, copies),
            Self::Operation(operation) => Program::of(operation, copies),
        }
    }
}
