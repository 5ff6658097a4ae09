//! Block formats of GGUF beside ggml's own quantizers (`tests/golden/gguf_blocks.py`): the same bytes, on weights of
//! every kind.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

use std::path::Path;

use safetensors::SafeTensors;
use tune_kernels::ggml::BlockType;

fn golden() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/gguf/blocks.safetensors"))
        .unwrap()
}

fn numbers(file: &SafeTensors<'_>) -> Vec<f32> {
    let (bytes, _) = file.tensor("numbers").unwrap().data().as_chunks();
    bytes.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn every_block_is_the_one_that_ggml_writes() {
    let bytes = golden();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = numbers(&file);
    let mut compared = 0;
    for kind in BlockType::ALL.into_iter().filter(|kind| *kind != BlockType::F32) {
        let expected = file.tensor(kind.name()).unwrap();
        let found = kind.encode(&numbers).unwrap();
        assert_eq!(found.len(), expected.data().len(), "{}", kind.name());
        let size = kind.bytes(256);
        for (row, (found, expected)) in found.chunks(size).zip(expected.data().chunks(size)).enumerate() {
            assert_eq!(found, expected, "{} row {row}", kind.name());
            compared += 1;
        }
    }
    assert_eq!(compared, 10 * 63);
}
