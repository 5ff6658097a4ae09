//! Why some bytes could not be turned into rows, before it is known which row asked for them; and the wall
//! that keeps the panics of decoders inside.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_schema::ArrowError;
use parquet::errors::ParquetError;

/// What is wrong, in words. Cheap to clone: all rows of a damaged block share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault(Arc<str>);

impl Fault {
    pub(crate) fn new(problem: impl Into<String>) -> Fault {
        Fault(problem.into().into())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Fault {
        Fault::new(format!("cannot be read: {error}"))
    }
}

impl From<ArrowError> for Fault {
    fn from(error: ArrowError) -> Fault {
        Fault::new(format!("corrupt Arrow data: {error}"))
    }
}

impl From<ParquetError> for Fault {
    fn from(error: ParquetError) -> Fault {
        Fault::new(format!("corrupt Parquet data: {error}"))
    }
}

/// Runs a decoder, and returns a fault if it panics.
///
/// The last wall, behind every check made here before: the Arrow and Parquet decoders index and slice by
/// numbers found in the file, and not all of those places check first. What they were building is dropped,
/// and nothing of ours is shared with them, so no broken state survives. (The panic's own message still goes
/// to standard error through the process's panic hook, which is not ours to replace.)
pub(crate) fn guard<T>(what: &str, decode: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|payload| {
        let said = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        Err(Fault::new(format!("corrupt {what} data: the decoder gave up ({said})")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_fault() {
        let fault = guard::<()>("Arrow", || panic!("index {} out of range", 7)).unwrap_err();
        assert_eq!(fault.to_string(), "corrupt Arrow data: the decoder gave up (index 7 out of range)");
        assert_eq!(guard("Arrow", || Ok(3)), Ok(3));
    }
}
