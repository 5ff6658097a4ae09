//! Which tensor is stored in which type: llama.cpp's rules for the supported file types
//! (`llama_tensor_get_type` in its `llama-quant.cpp`).
//!
//! Norms and biases are f32. The output head (or the embedding table, if tied) gets at least six bits. So do value and
//! down projections of the `_m` mixtures in the layers where errors cost most: the first and last eighth, and every
//! third between; one projection to queries, keys and values counts as one to values. A row whose length is no multiple of the block falls back to a type with smaller blocks.

use tune_kernels::ggml::BlockType;

use super::names::Role;

/// A file type, named after the type of most of its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 8 bits.
    Q8_0,
    /// 4 bits for all tensors.
    Q4_0,
    /// 4 bits, 6 for the tensors where errors cost most.
    Q4KM,
    /// 5 bits, 6 for the tensors where errors cost most.
    Q5KM,
    /// 6 bits.
    Q6K,
}

impl FileType {
    /// Its name on the command line and in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4KM => "q4_k_m",
            Self::Q5KM => "q5_k_m",
            Self::Q6K => "q6_k",
        }
    }

    /// Whether it has fewer bits than 8, so that rounding can cost what training gained.
    pub fn rounds(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16 | Self::Q8_0)
    }

    /// Its number in `general.file_type` (`enum llama_ftype`).
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Q5KM => 17,
            Self::Q6K => 18,
            Self::Bf16 => 32,
        }
    }

    /// The type of most of its matrices.
    fn usual(self) -> BlockType {
        match self {
            Self::F32 => BlockType::F32,
            Self::F16 => BlockType::F16,
            Self::Bf16 => BlockType::Bf16,
            Self::Q8_0 => BlockType::Q8_0,
            Self::Q4_0 => BlockType::Q4_0,
            Self::Q4KM => BlockType::Q4K,
            Self::Q5KM => BlockType::Q5K,
            Self::Q6K => BlockType::Q6K,
        }
    }

    fn is_mixture(self) -> bool {
        matches!(self, Self::Q4KM | Self::Q5KM)
    }
}

/// The properties of a model that the rules depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// Number of decoder layers.
    pub layers: usize,
    /// Whether the output head is tied to the embedding table.
    pub tied: bool,
    /// Whether llama.cpp gives the small value projections of this size more bits.
    pub shares_values_widely: bool,
}

/// The type chosen for a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The type it is stored in.
    pub kind: BlockType,
    /// The type that the rules ask for, if its rows do not fill blocks of that.
    pub wanted: BlockType,
}

/// The type of a tensor with rows of `columns` values.
pub fn choose(file: FileType, role: Role, columns: usize, model: Model) -> Choice {
    let usual = file.usual();
    if role == Role::Vector {
        return Choice { kind: BlockType::F32, wanted: BlockType::F32 };
    }
    if usual.block_size() == 1 {
        return Choice { kind: usual, wanted: usual };
    }
    if role == Role::Whole {
        return Choice { kind: BlockType::Bf16, wanted: BlockType::Bf16 };
    }
    let wanted = match role {
        Role::Head => head(usual),
        Role::Embedding if model.tied => head(usual),
        Role::Value { layer } => {
            let more = file.is_mixture() && gets_more_bits(layer, model.layers);
            match if more { BlockType::Q6K } else { usual } {
                BlockType::Q4K if model.shares_values_widely => BlockType::Q5K,
                other => other,
            }
        }
        Role::Down { layer } if file.is_mixture() && gets_more_bits(layer, model.layers) => BlockType::Q6K,
        _ => usual,
    };
    Choice { kind: fitting(wanted, columns), wanted }
}

/// The type of a quantized model's head: at least six bits.
fn head(usual: BlockType) -> BlockType {
    if usual == BlockType::Q8_0 { BlockType::Q8_0 } else { BlockType::Q6K }
}

/// The first and the last eighth of the layers, and every third between.
fn gets_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The type itself, or one of similar size whose blocks divide the rows.
fn fitting(wanted: BlockType, columns: usize) -> BlockType {
    let fits = |kind: BlockType| columns.is_multiple_of(kind.block_size());
    let smaller = match wanted {
        BlockType::Q4K => BlockType::Q5_0,
        BlockType::Q5K => BlockType::Q5_1,
        BlockType::Q6K => BlockType::Q8_0,
        other => other,
    };
    match (fits(wanted), fits(smaller)) {
        (true, _) => wanted,
        (false, true) => smaller,
        (false, false) => BlockType::F16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(
        file: FileType,
        role: impl Fn(usize) -> Role,
        columns: usize,
        layers: usize,
    ) -> Vec<&'static str> {
        let model = Model { layers, tied: false, shares_values_widely: false };
        (0..layers).map(|layer| choose(file, role(layer), columns, model).kind.name()).collect()
    }

    #[test]
    fn half_of_the_layers_get_more_bits() {
        let down = kinds(FileType::Q4KM, |layer| Role::Down { layer }, 256, 16);
        let more: Vec<usize> = (0..16).filter(|layer| down[*layer] == "q6_K").collect();
        assert_eq!(more, [0, 1, 4, 7, 10, 13, 14, 15]);
        let value = kinds(FileType::Q5KM, |layer| Role::Value { layer }, 256, 6);
        assert_eq!(value, ["q5_K", "q5_K", "q6_K", "q5_K", "q5_K", "q6_K"]);
        assert_eq!(kinds(FileType::Q4KM, |_| Role::Matrix, 256, 3), ["q4_K"; 3]);
    }

    #[test]
    fn heads_and_tied_embeddings_get_six_bits() {
        let model = |tied| Model { layers: 1, tied, shares_values_widely: false };
        let of = |file, role, columns, tied| choose(file, role, columns, model(tied)).kind;
        assert_eq!(of(FileType::Q4KM, Role::Head, 512, false), BlockType::Q6K);
        assert_eq!(of(FileType::Q4_0, Role::Embedding, 512, true), BlockType::Q6K);
        assert_eq!(of(FileType::Q4_0, Role::Embedding, 512, false), BlockType::Q4_0);
        assert_eq!(of(FileType::Q4_0, Role::Embedding, 96, true), BlockType::Q8_0);
        assert_eq!(of(FileType::Q4_0, Role::Embedding, 48, true), BlockType::F16);
        assert_eq!(of(FileType::Q8_0, Role::Head, 512, false), BlockType::Q8_0);
        assert_eq!(of(FileType::Bf16, Role::Head, 48, false), BlockType::Bf16);
    }

    #[test]
    fn rows_that_are_no_whole_blocks_fall_back() {
        let model = Model { layers: 8, tied: false, shares_values_widely: false };
        for (file, columns, kind, wanted) in [
            (FileType::Q4KM, 96, BlockType::Q5_0, BlockType::Q4K),
            (FileType::Q5KM, 96, BlockType::Q5_1, BlockType::Q5K),
            (FileType::Q6K, 96, BlockType::Q8_0, BlockType::Q6K),
            (FileType::Q4KM, 100, BlockType::F16, BlockType::Q4K),
            (FileType::Q8_0, 100, BlockType::F16, BlockType::Q8_0),
        ] {
            assert_eq!(choose(file, Role::Matrix, columns, model), Choice { kind, wanted });
        }
        let kept = |role| choose(FileType::Q4_0, role, 96, model).kind;
        assert_eq!([Role::Vector, Role::Whole].map(kept), [BlockType::F32, BlockType::Bf16]);
    }

    #[test]
    fn widely_shared_values_of_the_largest_models_get_a_bit_more() {
        let model = Model { layers: 80, tied: false, shares_values_widely: true };
        let of = |layer| choose(FileType::Q4KM, Role::Value { layer }, 8192, model).kind;
        assert_eq!((of(0), of(10), of(12)), (BlockType::Q6K, BlockType::Q5K, BlockType::Q6K));
    }
}
