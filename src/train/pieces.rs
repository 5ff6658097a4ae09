//! The largest tensors of a run: a device holds each in one buffer, and some devices limit a buffer far below their
//! memory.

use tune_kernels::memory;

use super::memory::Workload;
use crate::adapter::saved::SavedKind;
use crate::model::FloatDtype;
use crate::units::Bytes;

/// What it would take for a piece to be smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Smaller {
    /// Fewer tokens in a micro-batch.
    Tokens,
    /// Another compute dtype.
    Dtype,
    /// Another model or device.
    Nothing,
}

/// A tensor, and what would make it smaller.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    name: String,
    bytes: u64,
    smaller: Smaller,
}

/// A tensor is larger than any buffer that the device can hold, however much memory it has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name} take {} in one piece, and the device holds at most {} in one buffer. {}",
    Bytes(*bytes), Bytes(*most), way_out(*smaller)
)]
pub struct TooLargeAPiece {
    name: String,
    bytes: u64,
    most: u64,
    smaller: Smaller,
}

fn way_out(smaller: Smaller) -> &'static str {
    match smaller {
        Smaller::Tokens => {
            "Lower `train.micro_batch_size` (`--fit` chooses one that fits) or `data.max_seq_len`, or use another \
             `device`"
        }
        Smaller::Dtype => "A `model.compute_dtype` of 16 bits halves that; or use another `device`",
        Smaller::Nothing => "Use another `device`, or a smaller model",
    }
}

impl Workload<'_> {
    /// # Errors
    /// [`TooLargeAPiece`]: a tensor has more than `most` bytes, which is the most that a buffer of the device may have.
    pub fn require_pieces(&self, most: Option<u64>) -> Result<(), TooLargeAPiece> {
        let most = most.unwrap_or(u64::MAX);
        match self.pieces().into_iter().filter(|piece| piece.bytes > most).max_by_key(|piece| piece.bytes) {
            None => Ok(()),
            Some(Piece { name, bytes, smaller }) => Err(TooLargeAPiece { name, bytes, most, smaller }),
        }
    }

    /// The tensors that may be the largest, on a GPU.
    fn pieces(&self) -> Vec<Piece> {
        let (spec, value) = (self.spec, self.dtype.bytes() as u64);
        let hidden = spec.hidden_size as u64;
        let projections = || spec.layers.iter().flat_map(|layer| layer.projections());
        let table = spec.vocab_size as u64 * hidden;
        let of_dtype = if self.dtype == FloatDtype::F32 { Smaller::Dtype } else { Smaller::Nothing };
        // Gradients of one input are added up in f32.
        let width = projections().flat_map(|projection| projection.shape).max().unwrap_or(0) as u64;
        let widest = (width * value).max(4 * hidden);
        let mut pieces = vec![
            Piece { name: "the token embeddings".into(), bytes: table * value, smaller: of_dtype },
            Piece {
                name: "the activations of a micro-batch".into(),
                bytes: self.tokens * widest,
                smaller: Smaller::Tokens,
            },
            Piece {
                name: "the logits of a chunk of the loss".into(),
                bytes: memory::logits_bytes_on_gpu(self.tokens, spec.vocab_size as u64),
                smaller: Smaller::Tokens,
            },
        ];
        if let Some(projection) = projections().max_by_key(|projection| projection.elements()) {
            let name = format!("the weights of `{}`", projection.path);
            pieces.push(Piece { name, bytes: projection.elements() * value, smaller: of_dtype });
        }
        // What is trained is trained in f32.
        let is_table = |kind| matches!(kind, SavedKind::Embedding | SavedKind::Head);
        if self.saved_modules.iter().any(|saved| is_table(saved.kind)) {
            let name = "the trained token embeddings, or those of the head,".into();
            pieces.push(Piece { name, bytes: 4 * table, smaller: Smaller::Nothing });
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shapes;

    #[test]
    fn a_piece_larger_than_any_buffer_is_named_with_a_way_out() {
        let spec = shapes::spec("llama-3.1-8b").unwrap().unwrap();
        let workload = |dtype, tokens| Workload {
            spec: &spec,
            quantization: None,
            dtype,
            targets: &[],
            saved_modules: &[],
            tokens,
            shares_prompts: false,
            program: 0,
            on_device: true,
            host_embeddings: false,
            host_inputs: false,
        };
        let refused = |workload: Workload<'_>, most: u64| {
            workload.require_pieces(Some(most)).map_err(|error| error.to_string())
        };
        // 128256 x 4096 numbers.
        let embeddings = refused(workload(FloatDtype::F32, 2048), 2 << 30).err();
        assert!(embeddings.is_none_or(|refused| refused.contains("1.96 GiB")), "2 GiB hold them");
        let embeddings = refused(workload(FloatDtype::F32, 2048), 1 << 30).unwrap_err();
        assert!(
            embeddings.contains("1.96 GiB in one piece") && embeddings.contains("16 bits"),
            "{embeddings}"
        );
        assert_eq!(refused(workload(FloatDtype::Bf16, 2048), 1 << 30), Ok(()));
        // 65536 tokens of 14336 numbers.
        let activations = refused(workload(FloatDtype::Bf16, 65_536), 1 << 30).unwrap_err();
        assert!(activations.contains("1.75 GiB") && activations.contains("--fit"), "{activations}");
        assert_eq!(workload(FloatDtype::F32, 1 << 20).require_pieces(None), Ok(()));
    }
}
