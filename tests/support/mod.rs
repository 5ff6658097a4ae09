//! Safetensors files made to order, valid or not, for the tests of what reads them.

#![expect(clippy::panic, reason = "a helper outside the test functions may fail the test")]

use std::fs;
use std::path::Path;

use tune::assets::SafetensorsFile;

/// One tensor as it will stand in a file.
#[derive(Clone)]
pub(crate) struct Tensor {
    /// Its name.
    pub(crate) name: String,
    /// Its dtype as the format spells it.
    pub(crate) dtype: &'static str,
    /// Its shape.
    pub(crate) shape: Vec<usize>,
    /// Its bytes.
    pub(crate) data: Vec<u8>,
}

/// Writes a file that holds exactly these tensors.
pub(crate) fn write_safetensors(path: &Path, tensors: &[Tensor]) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for Tensor { name, dtype, shape, data: bytes } in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}),
        );
        data.extend_from_slice(bytes);
    }
    fs::write(path, safetensors(&serde_json::to_string(&header).unwrap(), &data)).unwrap();
}

/// The bytes of a file with this header, right or wrong.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// All tensors of a file.
pub(crate) fn read_tensors(path: &Path) -> Vec<Tensor> {
    let file = SafetensorsFile::open(path).unwrap();
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    names
        .into_iter()
        .map(|name| {
            let info = file.info(&name).unwrap();
            let dtype = match format!("{:?}", info.dtype).as_str() {
                "U8" => "U8",
                "F32" => "F32",
                "BF16" => "BF16",
                "F16" => "F16",
                other => panic!("no test writes {other}"),
            };
            Tensor { dtype, shape: info.shape.clone(), data: file.read(&name).unwrap(), name }
        })
        .collect()
}
