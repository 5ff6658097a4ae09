//! What a decoder layer is made of: values that a family composes from config.json.
//!
//! A layer is a list of residual blocks, a block a sum of branches:
//!
//! ```text
//! y = x + scale · post(Σᵢ postᵢ(bodyᵢ(preᵢ(x))))        block after block
//! ```
//!
//! Which norms exist says whether a block is pre-norm, post-norm or both. Each part states its tensors and the memory
//! that it takes; `model/layers` computes it. Refuses to know config.json (`family`), files (`load`) and tensors.

pub mod attention;
pub mod constant;
pub mod delta_net;
pub mod gated;
pub mod memory;
pub mod mixture;
pub mod norm;
pub mod per_layer;
pub mod plain;
pub mod projection;
pub mod reading;
pub mod short_conv;

pub use attention::{AttentionSpec, HeadNorms, Heads, Inner, OutputGate};
pub use constant::ConstantSpec;
pub use delta_net::DeltaNetSpec;
pub use gated::{GatedInner, GatedSpec};
pub use memory::{Load, WeightBytes, Workspace};
pub use mixture::{MixtureInputs, MixtureSpec, SharedExpertSpec};
pub use norm::{NormKind, NormSpec};
pub use per_layer::{PerLayerInputSpec, PerLayerSpec};
pub use plain::PlainSpec;
pub use projection::ProjectionSpec;
pub use reading::ReadingSpec;
pub use short_conv::ShortConvSpec;

use crate::adapter::projection::Slot;

/// One decoder layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    width: usize,
    blocks: Vec<BlockSpec>,
    tensors: Vec<LayerTensor>,
    factor: Option<ConstantSpec>,
}

/// A residual block.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSpec {
    /// The terms of its sum; all see the block's input.
    pub branches: Vec<BranchSpec>,
    /// Factor on the sum before it joins the residual.
    pub scale: f32,
    /// Norm of the sum of several branches.
    pub post: Option<NormSpec>,
}

/// One term of a residual block.
#[derive(Clone, Debug, PartialEq)]
pub struct BranchSpec {
    /// Norm of the block's input.
    pub pre: Option<NormSpec>,
    /// What is computed from it.
    pub body: BodySpec,
    /// Norm of the result.
    pub post: Option<NormSpec>,
}

/// What a branch computes.
#[derive(Clone, Debug, PartialEq)]
pub enum BodySpec {
    /// Self-attention.
    Attention(Box<AttentionSpec>),
    /// Attention over the keys and values of an earlier layer.
    Reading(Box<ReadingSpec>),
    /// A gated delta net.
    DeltaNet(Box<DeltaNetSpec>),
    /// A gated short convolution.
    ShortConv(ShortConvSpec),
    /// A gated feed-forward block.
    Gated(GatedSpec),
    /// Several of them, of which each token passes a few.
    Mixture(Box<MixtureSpec>),
    /// A feed-forward block without a gate.
    Plain(PlainSpec),
    /// A layer's part of the embeddings by layer.
    PerLayerInput(PerLayerInputSpec),
}

/// A part of a layer that has tensors.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerTensor {
    /// The weight of a norm.
    Norm(NormSpec),
    /// Weight and bias of a projection.
    Projection(ProjectionSpec),
    /// Another frozen tensor.
    Constant(ConstantSpec),
}

/// A part of a layer that has tensors, to be given its place.
pub(in crate::model) enum TensorMut<'a> {
    Norm(&'a mut NormSpec),
    Projection(&'a mut ProjectionSpec),
    Constant(&'a mut ConstantSpec),
}

impl From<AttentionSpec> for BodySpec {
    fn from(spec: AttentionSpec) -> Self {
        Self::Attention(Box::new(spec))
    }
}

impl From<ReadingSpec> for BodySpec {
    fn from(spec: ReadingSpec) -> Self {
        Self::Reading(Box::new(spec))
    }
}

impl From<DeltaNetSpec> for BodySpec {
    fn from(spec: DeltaNetSpec) -> Self {
        Self::DeltaNet(Box::new(spec))
    }
}

impl From<ShortConvSpec> for BodySpec {
    fn from(spec: ShortConvSpec) -> Self {
        Self::ShortConv(spec)
    }
}

impl From<GatedSpec> for BodySpec {
    fn from(spec: GatedSpec) -> Self {
        Self::Gated(spec)
    }
}

impl From<MixtureSpec> for BodySpec {
    fn from(spec: MixtureSpec) -> Self {
        Self::Mixture(Box::new(spec))
    }
}

impl From<PerLayerInputSpec> for BodySpec {
    fn from(spec: PerLayerInputSpec) -> Self {
        Self::PerLayerInput(spec)
    }
}

impl From<PlainSpec> for BodySpec {
    fn from(spec: PlainSpec) -> Self {
        Self::Plain(spec)
    }
}

/// A block of one branch, with a norm before it.
pub fn pre(norm: NormSpec, body: impl Into<BodySpec>) -> BlockSpec {
    BlockSpec {
        branches: vec![BranchSpec { pre: Some(norm), body: body.into(), post: None }],
        scale: 1.0,
        post: None,
    }
}

/// A block of one branch, with a norm behind it.
pub fn post(body: impl Into<BodySpec>, norm: NormSpec) -> BlockSpec {
    let branch = BranchSpec { pre: None, body: body.into(), post: Some(norm) };
    BlockSpec { branches: vec![branch], scale: 1.0, post: None }
}

/// A block of one branch, with norms on both sides.
pub fn sandwich(before: NormSpec, body: impl Into<BodySpec>, behind: NormSpec) -> BlockSpec {
    let branch = BranchSpec { pre: Some(before), body: body.into(), post: Some(behind) };
    BlockSpec { branches: vec![branch], scale: 1.0, post: None }
}

/// A block whose branches see its input side by side, each behind its own norm.
pub fn parallel<const N: usize>(branches: [(NormSpec, BodySpec); N]) -> BlockSpec {
    let branch = |(norm, body)| BranchSpec { pre: Some(norm), body, post: None };
    BlockSpec { branches: branches.map(branch).into(), scale: 1.0, post: None }
}

impl LayerSpec {
    /// A layer of `blocks` over hidden states of `width` numbers. Gives projections their slots and norms their places,
    /// in the order of use. Norms of one path are one norm.
    pub fn of(width: usize, blocks: impl Into<Vec<BlockSpec>>) -> Self {
        let mut blocks = blocks.into();
        let mut tensors = Vec::new();
        let (mut slots, mut places, mut constants) = (0.., 0.., 0..);
        for tensor in blocks.iter_mut().flat_map(BlockSpec::tensors_mut) {
            tensors.push(match tensor {
                TensorMut::Norm(norm) => {
                    if let Some(place) = place_of(&tensors, norm.path) {
                        norm.place = place;
                        continue;
                    }
                    norm.place = places.next().unwrap_or_default();
                    LayerTensor::Norm(norm.clone())
                }
                TensorMut::Projection(projection) => {
                    projection.slot = slots.next().unwrap_or_default();
                    LayerTensor::Projection(projection.clone())
                }
                TensorMut::Constant(constant) => {
                    constant.place = constants.next().unwrap_or_default();
                    LayerTensor::Constant(constant.clone())
                }
            });
        }
        Self { width, blocks, tensors, factor: None }
    }

    /// The same with its output times a frozen number, by name.
    #[must_use]
    pub fn times(mut self, name: &'static str) -> Self {
        let constants = self.tensors.iter().filter(|tensor| matches!(tensor, LayerTensor::Constant(_)));
        let factor = ConstantSpec { name, shape: vec![1], single: false, place: constants.count() };
        self.tensors.push(LayerTensor::Constant(factor.clone()));
        self.factor = Some(factor);
        self
    }

    /// The same with the projections in `slots` left dense whatever is quantized.
    #[must_use]
    pub(in crate::model) fn with_dense(&self, slots: &[Slot]) -> Self {
        let mut spec = self.clone();
        let listed = spec.tensors.iter_mut().filter_map(|tensor| match tensor {
            LayerTensor::Projection(projection) => Some(projection),
            LayerTensor::Norm(_) | LayerTensor::Constant(_) => None,
        });
        let placed =
            spec.blocks.iter_mut().flat_map(BlockSpec::tensors_mut).filter_map(|tensor| match tensor {
                TensorMut::Projection(projection) => Some(projection),
                TensorMut::Norm(_) | TensorMut::Constant(_) => None,
            });
        for projection in listed.chain(placed).filter(|projection| slots.contains(&projection.slot)) {
            projection.dense = true;
        }
        spec
    }

    /// What its output is multiplied by.
    pub fn factor(&self) -> Option<&ConstantSpec> {
        self.factor.as_ref()
    }

    /// Numbers of a token's hidden state.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The residual blocks, in order.
    pub fn blocks(&self) -> &[BlockSpec] {
        &self.blocks
    }

    /// Everything that has tensors, in the order of use.
    pub fn tensors(&self) -> &[LayerTensor] {
        &self.tensors
    }

    /// The projections by slot.
    pub fn projections(&self) -> impl Iterator<Item = &ProjectionSpec> {
        self.tensors.iter().filter_map(|tensor| match tensor {
            LayerTensor::Projection(projection) => Some(projection),
            LayerTensor::Norm(_) | LayerTensor::Constant(_) => None,
        })
    }

    /// The bodies of all branches, in order.
    pub fn bodies(&self) -> impl Iterator<Item = &BodySpec> {
        self.blocks.iter().flat_map(|block| block.branches.iter().map(|branch| &branch.body))
    }

    /// Whether a document may begin with tokens that stand in another one: attention reads their keys and values there; a
    /// state that a document leaves behind cannot be taken up by two.
    pub fn takes_prefixes(&self) -> bool {
        self.bodies().all(|body| match body {
            BodySpec::Attention(_) | BodySpec::Reading(_) => true,
            BodySpec::Gated(_) | BodySpec::Mixture(_) | BodySpec::Plain(_) | BodySpec::PerLayerInput(_) => {
                true
            }
            BodySpec::DeltaNet(_) | BodySpec::ShortConv(_) => false,
        })
    }

    /// The number of the shared keys and values that it reads.
    pub fn reads(&self) -> Option<usize> {
        self.reading().map(|reading| reading.from)
    }

    /// The first attention over keys and values of an earlier layer.
    pub fn reading(&self) -> Option<&ReadingSpec> {
        self.bodies().find_map(|body| match body {
            BodySpec::Reading(reading) => Some(&**reading),
            _ => None,
        })
    }

    /// The first gated delta net.
    pub fn delta_net(&self) -> Option<&DeltaNetSpec> {
        self.bodies().find_map(|body| match body {
            BodySpec::DeltaNet(delta_net) => Some(&**delta_net),
            _ => None,
        })
    }

    /// The first gated short convolution.
    pub fn short_conv(&self) -> Option<&ShortConvSpec> {
        self.bodies().find_map(|body| match body {
            BodySpec::ShortConv(conv) => Some(conv),
            _ => None,
        })
    }

    /// The first attention.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        self.bodies().find_map(|body| match body {
            BodySpec::Attention(attention) => Some(&**attention),
            _ => None,
        })
    }

    /// The first gated feed-forward block.
    pub fn gated(&self) -> Option<&GatedSpec> {
        self.bodies().find_map(|body| match body {
            BodySpec::Gated(gated) => Some(gated),
            _ => None,
        })
    }

    /// The first mixture of experts.
    pub fn mixture(&self) -> Option<&MixtureSpec> {
        self.bodies().find_map(|body| match body {
            BodySpec::Mixture(mixture) => Some(&**mixture),
            _ => None,
        })
    }

    /// The first feed-forward block without a gate.
    pub fn plain(&self) -> Option<&PlainSpec> {
        self.bodies().find_map(|body| match body {
            BodySpec::Plain(plain) => Some(plain),
            _ => None,
        })
    }

    /// Elements of the projections that a token is multiplied with: all of them, but of experts only those it passes.
    pub fn projection_elements(&self) -> u64 {
        let idle = |body: &BodySpec| match body {
            BodySpec::Mixture(mixture) => mixture.idle_elements(),
            _ => 0,
        };
        let all: u64 = self.projections().map(ProjectionSpec::elements).sum();
        all - self.bodies().map(idle).sum::<u64>()
    }
}

/// The place of the norm of a path among tensors.
fn place_of(tensors: &[LayerTensor], path: &str) -> Option<usize> {
    tensors.iter().find_map(|tensor| match tensor {
        LayerTensor::Norm(norm) if norm.path == path => Some(norm.place),
        _ => None,
    })
}

impl BlockSpec {
    fn tensors_mut(&mut self) -> Vec<TensorMut<'_>> {
        let mut tensors = Vec::new();
        for BranchSpec { pre, body, post } in &mut self.branches {
            tensors.extend(pre.as_mut().map(TensorMut::Norm));
            match body {
                BodySpec::Attention(attention) => tensors.extend(attention.tensors_mut()),
                BodySpec::Reading(reading) => tensors.extend(reading.tensors_mut()),
                BodySpec::DeltaNet(delta_net) => tensors.extend(delta_net.tensors_mut()),
                BodySpec::ShortConv(conv) => tensors.extend(conv.tensors_mut()),
                BodySpec::Gated(gated) => tensors.extend(gated.tensors_mut()),
                BodySpec::Mixture(mixture) => tensors.extend(mixture.tensors_mut()),
                BodySpec::Plain(plain) => tensors.extend(plain.tensors_mut()),
                BodySpec::PerLayerInput(input) => tensors.extend(input.tensors_mut()),
            }
            tensors.extend(post.as_mut().map(TensorMut::Norm));
        }
        tensors.extend(self.post.as_mut().map(TensorMut::Norm));
        tensors
    }
}
